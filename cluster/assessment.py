"""Candidate: one replica weighed for one request: what it would miss and cost, in words; it picks none."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from cluster.cost_model import CostModel
from cluster.prediction import Backlog, Prediction, ReplicaLimits, predict
from cluster.profile import StepShape
from cluster.slo import SloLimits, meets_floor

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
    """`promised_tpot_ms` is the tightest promise of the requests already there."""
    prediction = predict_for(query, model, limits, backlog)
    promise = promised_tpot_ms if _keeps(promised_tpot_ms, model, backlog) else None
    bounds = [
        (name, value, bound) for name, value, bound in _bounds(query.slo, prediction, promise) if bound is not None
    ]
    return Candidate(
        variant=model.variant.name,
        replica_id=replica_id,
        quality=model.variant.quality,
        below_floor=not meets_floor(model.variant.quality, query.slo.min_quality),
        prediction=prediction,
        misses=tuple(f"{name} {value:.0f}ms" for name, value, bound in bounds if value > bound),
        overshoot=max((value / bound for _, value, bound in bounds), default=0.0),
    )


def predict_for(query: RouteQuery, model: CostModel, limits: ReplicaLimits, backlog: Backlog) -> Prediction:
    prompt_tokens, output_tokens = query.prompt_tokens, query.expected_output_tokens
    return predict(model, limits, backlog, prompt_tokens=prompt_tokens, output_tokens=output_tokens)


def idle_keeps(query: RouteQuery, model: CostModel, limits: ReplicaLimits) -> bool:
    """Whether the limits can be kept at all: by this variant with nothing else to do."""
    prediction = predict_for(query, model, limits, Backlog(kv_capacity_tokens=IDLE_CAPACITY_TOKENS))
    return all(bound is None or value <= bound for _, value, bound in _bounds(query.slo, prediction, None))


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


def _bounds(
    slo: SloLimits, prediction: Prediction, promise_ms: float | None
) -> Iterator[tuple[str, float, float | None]]:
    yield "ttft", prediction.ttft_s * 1e3, slo.ttft_ms
    yield "tpot", prediction.tpot_s * 1e3, slo.tpot_ms
    yield "others' tpot", prediction.tpot_s * 1e3, promise_ms
    if slo.objective == "throughput" and slo.deadline_s is not None:
        yield "deadline", prediction.total_s * 1e3, slo.deadline_s * 1e3


def _keeps(tpot_ms: float | None, model: CostModel, backlog: Backlog) -> bool:
    """A promise that is broken already is no reason to keep others out."""
    if tpot_ms is None or not backlog.decoding:
        return tpot_ms is not None
    step = StepShape(decode_sequences=backlog.decoding, kv_tokens=backlog.kv_used_tokens)
    return backlog.step_time_ratio * model.step_s(step) * 1e3 <= tpot_ms
