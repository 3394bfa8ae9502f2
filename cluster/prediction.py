"""TTFT, TPOT and cost of one more request on each of many replicas, by backlog and cost model; it knows no SLO."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass

import numpy as np

from cluster.cost_model import CostModel
from cluster.prediction_kernel import COST, DECODES, NUM_PREDICTIONS, TOTAL, TTFT, WAIT, Floats, predict_rows
from cluster.step_table import StepTable


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaLimits:
    """What an engine takes at most; the figures of its EngineSpec."""

    token_budget: int
    max_sequences: int
    max_waiting: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Backlog:
    """What a replica has before it, as the router believes."""

    kv_capacity_tokens: int
    kv_used_tokens: int = 0
    kv_promised_tokens: int = 0
    """What admitted requests may still come to need."""
    decoding: int = 0
    waiting: int = 0
    """Admitted, and no token given yet."""
    prefill_tokens: int = 0
    """Of prompts, admitted and not computed."""
    prefill_tokens_per_s: float = 0.0
    """Recent arrivals: prompts that will share the steps of whoever decodes."""
    step_time_ratio: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    ttft_s: float
    tpot_s: float
    wait_s: float
    """Part of ttft_s: until there is a slot and KV for it."""
    cost_s: float
    """Seconds of the replica's share of the accelerator: its own prefill, and its part of every decode step."""
    total_s: float


class Predictions:
    """Prediction of many replicas, and what a step of the decodes there takes now, without this request."""

    def __init__(self, rows: Floats) -> None:
        """As prediction_kernel names them."""
        self.rows = rows

    @property
    def ttft_s(self) -> Floats:
        return _row(self.rows, TTFT)

    @property
    def wait_s(self) -> Floats:
        return _row(self.rows, WAIT)

    @property
    def cost_s(self) -> Floats:
        return _row(self.rows, COST)

    @property
    def total_s(self) -> Floats:
        return _row(self.rows, TOTAL)

    @property
    def decodes_s(self) -> Floats:
        """Times the replica's step time ratio."""
        return _row(self.rows, DECODES)

    def of_replica(self, index: int) -> Prediction:
        ttft_s, tpot_s, wait_s, cost_s, total_s, _ = self.rows[:, index].tolist()
        return Prediction(ttft_s=ttft_s, tpot_s=tpot_s, wait_s=wait_s, cost_s=cost_s, total_s=total_s)


def _row(rows: Floats, index: int) -> Floats:
    row: Floats = rows[index]
    return row


def backlog_columns(backlogs: Sequence[Backlog]) -> Floats:
    """A row of each field, a column of each replica."""
    return np.array([astuple(backlog) for backlog in backlogs], dtype=np.float64).T.copy()


def predict(
    model: CostModel, limits: ReplicaLimits, backlog: Backlog, *, prompt_tokens: int, output_tokens: float
) -> Prediction:
    """Of one replica."""
    table, backlogs = StepTable([model]), backlog_columns([backlog])
    return predict_all(table, limits, backlogs, prompt_tokens=prompt_tokens, output_tokens=output_tokens).of_replica(0)


def predict_all(
    table: StepTable, limits: ReplicaLimits, backlogs: Floats, *, prompt_tokens: int, output_tokens: float
) -> Predictions:
    """Of the table's replicas, whose backlogs these columns are."""
    rows = np.empty((NUM_PREDICTIONS, len(table.machines)))
    predict_rows(
        table.machines,
        table.residuals,
        backlogs,
        limits.token_budget,
        limits.max_sequences,
        float(prompt_tokens),
        float(output_tokens),
        rows,
    )
    return Predictions(rows)
