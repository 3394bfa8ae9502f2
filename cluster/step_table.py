"""StepTable: the cost models of many replicas as numbers that a compiled kernel reads; it knows no request."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cluster.cost_model import CostModel
from cluster.prediction_kernel import KNEE, MACHINE_FIELDS, Floats, step_s
from cluster.profile import StepShape
from cluster.step_fit import Fitted, Residual, Roofline


class StepTable:
    def __init__(self, models: Sequence[CostModel]) -> None:
        """The model of each replica."""
        self.machines = np.zeros((len(models), MACHINE_FIELDS))
        known: dict[int, tuple[int, ...]] = {}
        residuals: list[Residual] = []
        for row, model in zip(self.machines, models, strict=True):
            machine = model.machine
            row[:5] = model.weights_s, model.linear_token_s, model.kv_token_s, model.pair_s, model.share
            if isinstance(machine, Fitted):
                if id(machine) not in known:
                    known[id(machine)] = (len(residuals), len(machine.residuals))
                    residuals += machine.residuals
                row[5:] = (
                    machine.t0_s,
                    machine.per_token_s,
                    machine.weights,
                    machine.second_read,
                    machine.knee_tokens,
                    machine.decode_attention,
                    machine.prefill_attention,
                    *known[id(machine)],
                )
            else:
                assert isinstance(machine, Roofline), f"no kernel for {type(machine).__name__}"
                row[5], row[KNEE] = machine.t0_s, 0.0
        # A row a coordinate: the kernel adds up many residuals at once, which must lie together for it.
        columns = np.array([(*each.place, each.log_ratio) for each in residuals]).reshape(-1, 5)
        self.residuals: Floats = np.ascontiguousarray(columns.T)

    def step_s(self, place: int, step: StepShape) -> float:
        """CostModel.step_s of the replica there."""
        return step_s(
            self.machines[place],
            self.residuals,
            step.decode_sequences,
            step.kv_tokens,
            step.prefill_tokens,
            step.prefill_context_tokens,
        )
