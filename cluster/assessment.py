"""Replicas weighed for one request: what each would miss and cost, in figures and words; it picks none."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from math import inf

import numpy as np
from numpy.typing import NDArray

from cluster.cost_model import CostModel
from cluster.prediction import Backlog, Prediction, ReplicaLimits, backlog_columns, predict, predict_all
from cluster.prediction_kernel import Floats, least_places, overshoot_rows
from cluster.slo import SloLimits, meets_floor
from cluster.step_table import StepTable
from cluster.variants import Variant

IDLE_CAPACITY_TOKENS = 2**40


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteQuery:
    slo: SloLimits
    prompt_tokens: int
    expected_output_tokens: float
    model_variant: str | None = None
    """Named by the request: then only the replica is chosen, not the variant."""
    exclude: frozenset[str] = frozenset()
    """Replicas that have refused it or lost it."""
    prefix: tuple[int, ...] = ()
    """Names of the prompt's beginnings, the shortest first, as cluster.prefix_hash makes them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    variant: str
    replica_id: str
    quality: float | None
    below_floor: bool
    prediction: Prediction
    misses: tuple[str, ...]
    """Limits; the floor is apart."""
    overshoot: float
    """The worst of predicted / limit; at most 1 where none is missed."""

    @property
    def meets_all(self) -> bool:
        return not self.misses and not self.below_floor

    def shortcoming(self) -> str:
        """Of the variant, such as `bf16 misses tpot 71ms`."""
        words = []
        if self.below_floor:
            words.append("has no measured quality" if self.quality is None else f"has quality {self.quality:.2f}")
        if self.misses:
            words.append(f"misses {' '.join(self.misses)}")
        return f"{self.variant} {' and '.join(words)}"


def assess(
    query: RouteQuery,
    model: CostModel,
    limits: ReplicaLimits,
    backlog: Backlog,
    *,
    replica_id: str,
    promised_tpot_ms: float | None,
) -> Candidate:
    """One replica alone; `promised_tpot_ms` is the tightest promise of the requests already there."""
    promise_ms = np.array([np.inf if promised_tpot_ms is None else promised_tpot_ms], dtype=np.float64)
    replicas = AssessedReplicas.of([replica_id], [model])
    return Assessment(query, replicas, limits, backlog_columns([backlog]), promise_ms).candidate(0)


@dataclass(frozen=True, slots=True, kw_only=True)
class AssessedReplicas:
    """What of them stays the same from one request to the next."""

    ids: Sequence[str]
    variants: Sequence[Variant]
    quality: Floats
    """NaN where nobody measured it."""
    steps: StepTable
    names: Sequence[str]
    """Of the variants, in alphabetical order."""
    variant_of: NDArray[np.intp]
    """Each one's place in `names`."""

    @classmethod
    def of(cls, ids: Sequence[str], models: Sequence[CostModel]) -> AssessedReplicas:
        variants = [model.variant for model in models]
        names = sorted({variant.name for variant in variants})
        return cls(
            ids=ids,
            variants=variants,
            quality=np.array([np.nan if v.quality is None else v.quality for v in variants], dtype=np.float64),
            steps=StepTable(models),
            names=names,
            variant_of=np.array([names.index(variant.name) for variant in variants], dtype=np.intp),
        )


class Assessment:
    """Replicas weighed for one request; each is told in words only when asked for."""

    def __init__(
        self,
        query: RouteQuery,
        replicas: AssessedReplicas,
        limits: ReplicaLimits,
        backlogs: Floats,
        promised_tpot_ms: Floats,
    ) -> None:
        """`promised_tpot_ms`: by replica, infinite where none was promised."""
        self.query = query
        self.replicas = replicas
        self.predictions = predict_all(
            replicas.steps,
            limits,
            backlogs,
            prompt_tokens=query.prompt_tokens,
            output_tokens=query.expected_output_tokens,
        )
        slo = query.slo
        self._promised_tpot_ms = promised_tpot_ms
        self.overshoot = overshoot_rows(
            self.predictions.rows,
            promised_tpot_ms / 1e3,
            inf if slo.ttft_ms is None else slo.ttft_ms / 1e3,
            inf if slo.tpot_ms is None else slo.tpot_ms / 1e3,
            slo.deadline_s if slo.objective == "throughput" and slo.deadline_s is not None else inf,
        )
        """The worst of predicted / limit."""

    def meeting(self) -> NDArray[np.bool_]:
        """Those that keep every limit and the floor."""
        floor = self.query.slo.min_quality
        return self.in_time() & (self.replicas.quality >= floor) if floor > 0 else self.in_time()

    def in_time(self) -> NDArray[np.bool_]:
        """Those that keep every limit."""
        in_time: NDArray[np.bool_] = self.overshoot <= 1
        return in_time

    def least(self, among: NDArray[np.bool_], scores: Floats, tie: float, draw: float) -> dict[str, int]:
        """Of each variant that has any among those, the place of one with the least score; as least_places."""
        replicas = self.replicas
        places = least_places(scores, among, replicas.variant_of, len(replicas.names), tie, draw)
        return {name: place for name, place in zip(replicas.names, places.tolist(), strict=True) if place >= 0}

    def candidate(self, index: int) -> Candidate:
        prediction = self.predictions.of_replica(index)
        bounds = list(_bounds(self.query.slo, prediction, self._promise_ms(index)))
        variant = self.replicas.variants[index]
        return Candidate(
            variant=variant.name,
            replica_id=self.replicas.ids[index],
            quality=variant.quality,
            below_floor=not meets_floor(variant.quality, self.query.slo.min_quality),
            prediction=prediction,
            misses=tuple(f"{name} {value:.0f}ms" for name, value, bound in bounds if value > bound),
            overshoot=float(self.overshoot[index]),
        )

    def _promise_ms(self, index: int) -> float:
        """Infinite where it is broken already."""
        promise_ms = float(self._promised_tpot_ms[index])
        return inf if self.predictions.decodes_s[index] * 1e3 > promise_ms else promise_ms


def predict_for(query: RouteQuery, model: CostModel, limits: ReplicaLimits, backlog: Backlog) -> Prediction:
    prompt_tokens, output_tokens = query.prompt_tokens, query.expected_output_tokens
    return predict(model, limits, backlog, prompt_tokens=prompt_tokens, output_tokens=output_tokens)


def idle_keeps(query: RouteQuery, model: CostModel, limits: ReplicaLimits) -> bool:
    """Whether the limits can be kept at all: by this variant with nothing else to do."""
    return bool(kept_when_idle(query, AssessedReplicas.of([""], [model]), limits)[0])


def kept_when_idle(query: RouteQuery, replicas: AssessedReplicas, limits: ReplicaLimits) -> NDArray[np.bool_]:
    """Which of them keep the limits, the floor aside, with nothing else to do."""
    none = np.zeros(len(replicas.ids))
    idle = backlog_columns([Backlog(kv_capacity_tokens=IDLE_CAPACITY_TOKENS)] * len(none))
    return Assessment(query, replicas, limits, idle, none + np.inf).in_time()


@cache
def wanted(slo: SloLimits) -> str:
    """The limits in words, such as `ttft<=500ms quality>=0.90`."""
    words = []
    if slo.ttft_ms is not None:
        words.append(f"ttft<={slo.ttft_ms:g}ms")
    if slo.tpot_ms is not None:
        words.append(f"tpot<={slo.tpot_ms:g}ms")
    if slo.min_quality > 0:
        words.append(f"quality>={slo.min_quality:.2f}")
    return " ".join(words) or "no limit"


def best_of_each_variant(candidates: Iterable[Candidate]) -> list[Candidate]:
    """The nearest to its limits, for telling why a variant was left out."""
    best: dict[str, Candidate] = {}
    for candidate in candidates:
        other = best.get(candidate.variant)
        if other is None or candidate.overshoot < other.overshoot:
            best[candidate.variant] = candidate
    return [best[variant] for variant in sorted(best)]


def _bounds(slo: SloLimits, prediction: Prediction, promise_ms: float) -> Iterator[tuple[str, float, float]]:
    """Name, predicted and limit in ms, as overshoot_rows weighs them."""
    if slo.ttft_ms is not None:
        yield "ttft", prediction.ttft_s * 1e3, slo.ttft_ms
    if slo.tpot_ms is not None:
        yield "tpot", prediction.tpot_s * 1e3, slo.tpot_ms
    yield "others' tpot", prediction.tpot_s * 1e3, promise_ms
    if slo.objective == "throughput" and slo.deadline_s is not None:
        yield "deadline", prediction.total_s * 1e3, slo.deadline_s * 1e3
