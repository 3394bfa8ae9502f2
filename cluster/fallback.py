"""What becomes of a request whose limits no replica keeps: degraded, queued or refused; it weighs no replica."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cluster.assessment import AssessedReplicas, Candidate, RouteQuery, best_of_each_variant, kept_when_idle, wanted
from cluster.choice import Choice, Refusal, choice_among
from cluster.cost_model import CostModel
from cluster.prediction import ReplicaLimits
from cluster.slo import Fallback, meets_floor
from cluster.ties import Ties

RETRY_LEAST_S, RETRY_MOST_S = 0.05, 10.0
STARTING_RETRY_S = 1.0
"""How soon to ask again where no replica of a fitting variant is ready."""


def fallback(
    query: RouteQuery,
    candidates: Sequence[Candidate],
    one_of_each: AssessedReplicas,
    limits: ReplicaLimits,
    models: Mapping[str, CostModel],
    ties: Ties,
) -> Choice | Refusal:
    """`candidates` could take the request; `one_of_each`: of the variants, whether any replica runs or not."""
    slo = query.slo
    if not candidates:
        return none_ready(query, models, "no replica can take a request now")
    why = f"none meets {wanted(slo)}{left_out(best_of_each_variant(candidates))}"
    fitting = [candidate for candidate in candidates if not candidate.below_floor]
    if slo.fallback == "degrade":
        return choice_among(_degraded(candidates, ties), f"degraded, {why}", degraded=True)
    if not fitting:
        return none_ready(query, models, why)
    nearest = ties.pick_by(fitting, _overshoot)
    if slo.fallback == "reject":
        return Refusal(reason=why, retry_after_s=_retry_s(query, nearest), fallback="reject")
    kept = kept_when_idle(query, one_of_each, limits)
    idle_keeps = {name for name, is_kept in zip(one_of_each.ids, kept.tolist(), strict=True) if is_kept}
    if any(candidate.variant in idle_keeps for candidate in fitting):
        return Refusal(reason=f"queued, {why}", retry_after_s=_retry_s(query, nearest), fallback="queue")
    # What no idle replica keeps, waiting does not mend.
    return choice_among(nearest, f"best effort, {why}, idle or not", degraded=True)


def none_ready(query: RouteQuery, models: Mapping[str, CostModel], why: str) -> Refusal:
    """Worth waiting for only if a variant that would do is configured."""
    floor = 0.0 if query.model_variant is not None else query.slo.min_quality
    exists = any(meets_floor(model.variant.quality, floor) for model in models.values())
    what: Fallback = "queue" if exists and query.slo.fallback != "reject" else "reject"
    return Refusal(reason=why, retry_after_s=STARTING_RETRY_S, fallback=what)


def left_out(candidates: Sequence[Candidate]) -> str:
    return "".join(f"; {candidate.shortcoming()}" for candidate in candidates)


def _degraded(candidates: Sequence[Candidate], ties: Ties) -> Candidate:
    """The best quality that keeps the latency limits; if none keeps them, the one nearest to them."""
    in_time = [candidate for candidate in candidates if not candidate.misses]
    if not in_time:
        return ties.pick_by([c for c in candidates if not c.below_floor] or candidates, _overshoot)
    best = max(candidate.quality or 0.0 for candidate in in_time)
    return ties.pick_by([candidate for candidate in in_time if (candidate.quality or 0.0) == best], _ttft)


def _retry_s(query: RouteQuery, nearest: Candidate) -> float:
    """When the backlog will have shrunk by what is too much of it now."""
    late_s = nearest.prediction.ttft_s - (query.slo.ttft_ms or 0.0) / 1e3
    return min(RETRY_MOST_S, max(RETRY_LEAST_S, late_s))


def _ttft(candidate: Candidate) -> float:
    return candidate.prediction.ttft_s


def _overshoot(candidate: Candidate) -> float:
    return candidate.overshoot
