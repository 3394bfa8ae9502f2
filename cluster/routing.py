"""SloRouter: a request and the replicas' loads -> variant and replica, with the reason; it knows no HTTP, no clock."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from cluster.assessment import Candidate, assess, best_of_each_variant, idle_keeps, predict_for, wanted
from cluster.assessment import RouteQuery as RouteQuery
from cluster.cost_model import CostModel
from cluster.load import Load
from cluster.prediction import Prediction, ReplicaLimits
from cluster.replica_view import Dispatch, ReplicaView
from cluster.slo import Fallback, meets_floor

PRIOR_AFTER_PERIODS = 2
INELIGIBLE_AFTER_PERIODS = 5
TIE = 1.01
"""Predictions this close are equal: they are not exact to 1 %, and routers that break ties alike make a herd."""
RETRY_LEAST_S, RETRY_MOST_S = 0.05, 10.0
STARTING_RETRY_S = 1.0
"""How soon to ask again where no replica of a fitting variant is ready."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    variant: str
    replica_id: str
    reason: str
    """One line of ASCII, fit for a header."""
    predicted_ttft_ms: float
    predicted_tpot_ms: float
    degraded: bool = False
    """A limit or the quality floor is predicted to be missed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    reason: str
    retry_after_s: float
    fallback: Fallback
    """`queue`: choosing again after retry_after_s may help, until the class's deadline; `reject`: not now."""


class SloRouter:
    """The cheapest replica that keeps every limit; where none does, the class's fallback."""

    def __init__(
        self,
        models: Mapping[str, CostModel],
        limits: ReplicaLimits,
        *,
        load_period_s: float = 1.0,
        num_ingresses: int = 1,
        rng: random.Random | None = None,
    ) -> None:
        self.models = models
        self.limits = limits
        self.load_period_s = load_period_s
        self.num_ingresses = num_ingresses
        self.rng = rng or random.Random()
        self.replicas: dict[str, ReplicaView] = {}
        self._replica_of: dict[str, str] = {}

    def update(self, load: Load, now_s: float) -> None:
        view = self.replicas.get(load.replica_id)
        if view is None:
            self.replicas[load.replica_id] = ReplicaView(load=load, received_s=now_s)
        else:
            view.received(load, now_s)

    def remove(self, replica_id: str) -> None:
        self.replicas.pop(replica_id, None)
        self._replica_of = {request: name for request, name in self._replica_of.items() if name != replica_id}

    def dispatched(
        self,
        replica_id: str,
        request_id: str,
        prompt_tokens: int,
        max_tokens: int,
        now_s: float,
        tpot_ms: float | None = None,
    ) -> None:
        """Counted until a Load does so; later requests are not put where they break `tpot_ms`, what it was promised."""
        view = self.replicas.get(replica_id)
        if view is not None:
            dispatch = Dispatch(at_s=now_s, prompt_tokens=prompt_tokens, max_tokens=max_tokens, tpot_ms=tpot_ms)
            view.dispatched(request_id, dispatch)
            self._replica_of[request_id] = replica_id

    def finished(self, request_id: str) -> None:
        view = self.replicas.get(self._replica_of.pop(request_id, ""))
        if view is not None:
            view.finished(request_id)

    def choose(self, query: RouteQuery, now_s: float) -> Choice | Refusal:
        ready = self._ready(query)
        eligible = [view for view in ready if self._periods(view, now_s) <= INELIGIBLE_AFTER_PERIODS]
        if ready and not eligible:
            return self._blind(query, ready)
        candidates = [self._assess(query, view, now_s) for view in eligible if not self._full(view)]
        if query.model_variant is not None:
            return self._of_named_variant(query, candidates)
        meeting = [candidate for candidate in candidates if candidate.meets_all]
        if meeting:
            return self._cheapest(query, meeting, candidates)
        return self._fallback(query, candidates)

    def _ready(self, query: RouteQuery) -> list[ReplicaView]:
        variants = self.models if query.model_variant is None else {query.model_variant}
        return [
            view for name, view in self.replicas.items() if name not in query.exclude and view.load.variant in variants
        ]

    def _periods(self, view: ReplicaView, now_s: float) -> float:
        return (now_s - view.received_s) / self.load_period_s

    def _full(self, view: ReplicaView) -> bool:
        backlog = view.backlog(fresh=True, num_ingresses=self.num_ingresses)
        return backlog.decoding + backlog.waiting >= self.limits.max_sequences + self.limits.max_waiting

    def _assess(self, query: RouteQuery, view: ReplicaView, now_s: float) -> Candidate:
        fresh = self._periods(view, now_s) <= PRIOR_AFTER_PERIODS
        return assess(
            query,
            self.models[view.load.variant],
            self.limits,
            view.backlog(fresh=fresh, num_ingresses=self.num_ingresses),
            replica_id=view.load.replica_id,
            promised_tpot_ms=view.tightest_tpot_ms(),
        )

    def _cheapest(self, query: RouteQuery, meeting: list[Candidate], all_seen: Sequence[Candidate]) -> Choice:
        slo = query.slo
        if slo.objective == "throughput":
            # Cheapest is the fullest batch, but not one that has to be waited for while another has room.
            meeting = [candidate for candidate in meeting if not candidate.prediction.wait_s] or meeting
            per_variant = self._best_by_variant(meeting, _cost)
            score, what = _cost, "least cost"
        else:
            per_variant = self._best_by_variant(meeting, _ttft)
            bounded = slo.ttft_ms is not None or slo.tpot_ms is not None
            score, what = (_cost, "cheapest") if bounded else (_total, "fastest")
        chosen = self._pick(per_variant, score)
        others = [c for c in best_of_each_variant(all_seen) if all(c.variant != kept.variant for kept in per_variant)]
        figures = ", ".join(self._figure(candidate, score) for candidate in sorted(per_variant, key=score))
        reason = f"{what} of {len(per_variant)} meeting {wanted(slo)} ({figures}{_left_out(others)})"
        return _choice(chosen, reason)

    def _best_by_variant(self, candidates: Sequence[Candidate], score: Callable[[Candidate], float]) -> list[Candidate]:
        variants = sorted({candidate.variant for candidate in candidates})
        return [self._pick([c for c in candidates if c.variant == variant], score) for variant in variants]

    def _pick(self, candidates: Sequence[Candidate], score: Callable[[Candidate], float]) -> Candidate:
        best = min(map(score, candidates))
        return self.rng.choice([candidate for candidate in candidates if score(candidate) <= best * TIE])

    def _figure(self, candidate: Candidate, score: Callable[[Candidate], float]) -> str:
        unit = "s" if score is _total else f"{self.models[candidate.variant].accelerator.kind}-s"
        return f"{candidate.variant} {score(candidate):.2g} {unit}"

    def _of_named_variant(self, query: RouteQuery, candidates: Sequence[Candidate]) -> Choice | Refusal:
        if not candidates:
            return self._none_ready(query, f"no replica of {query.model_variant} can take a request now")
        return _choice(self._pick(candidates, _ttft), "named by the request")

    def _fallback(self, query: RouteQuery, candidates: list[Candidate]) -> Choice | Refusal:
        slo = query.slo
        if not candidates:
            return self._none_ready(query, "no replica can take a request now")
        why = f"none meets {wanted(slo)}{_left_out(best_of_each_variant(candidates))}"
        fitting = [candidate for candidate in candidates if not candidate.below_floor]
        if slo.fallback == "degrade":
            return _choice(self._degraded(candidates), f"degraded, {why}", degraded=True)
        if not fitting:
            return self._none_ready(query, why)
        nearest = self._pick(fitting, _overshoot)
        if slo.fallback == "reject":
            return Refusal(reason=why, retry_after_s=_retry_s(query, nearest), fallback="reject")
        if any(idle_keeps(query, self.models[c.variant], self.limits) for c in best_of_each_variant(fitting)):
            return Refusal(reason=f"queued, {why}", retry_after_s=_retry_s(query, nearest), fallback="queue")
        # What no idle replica keeps, waiting does not mend.
        return _choice(nearest, f"best effort, {why}, idle or not", degraded=True)

    def _degraded(self, candidates: list[Candidate]) -> Candidate:
        """The best quality that keeps the latency limits; if none keeps them, the one nearest to them."""
        in_time = [candidate for candidate in candidates if not candidate.misses]
        if not in_time:
            return self._pick([c for c in candidates if not c.below_floor] or candidates, _overshoot)
        best = max(candidate.quality or 0.0 for candidate in in_time)
        return self._pick([candidate for candidate in in_time if (candidate.quality or 0.0) == best], _ttft)

    def _none_ready(self, query: RouteQuery, why: str) -> Refusal:
        """Worth waiting for only if a variant that would do is configured."""
        floor = 0.0 if query.model_variant is not None else query.slo.min_quality
        exists = any(meets_floor(model.variant.quality, floor) for model in self.models.values())
        fallback: Fallback = "queue" if exists and query.slo.fallback != "reject" else "reject"
        return Refusal(reason=why, retry_after_s=STARTING_RETRY_S, fallback=fallback)

    def _blind(self, query: RouteQuery, ready: list[ReplicaView]) -> Choice | Refusal:
        """No replica has been heard of lately: at random by capacity, as the last loads would send all to one."""
        floor = 0.0 if query.model_variant is not None else query.slo.min_quality
        fitting = [view for view in ready if meets_floor(self.models[view.load.variant].variant.quality, floor)]
        if not fitting:
            return self._none_ready(query, f"no replica with quality>={floor:.2f} is ready")
        view = self.rng.choices(fitting, [view.load.kv_tokens_capacity for view in fitting])[0]
        backlog = view.backlog(fresh=False, num_ingresses=self.num_ingresses)
        prediction = predict_for(query, self.models[view.load.variant], self.limits, backlog)
        reason = "loads of all replicas are stale, so at random by capacity"
        return _chosen(view.load.variant, view.load.replica_id, prediction, reason)


def _chosen(variant: str, replica_id: str, prediction: Prediction, reason: str, degraded: bool = False) -> Choice:
    return Choice(
        variant=variant,
        replica_id=replica_id,
        reason=f"{variant}: {reason}",
        predicted_ttft_ms=prediction.ttft_s * 1e3,
        predicted_tpot_ms=prediction.tpot_s * 1e3,
        degraded=degraded,
    )


def _choice(candidate: Candidate, reason: str, degraded: bool = False) -> Choice:
    return _chosen(candidate.variant, candidate.replica_id, candidate.prediction, reason, degraded)


def _left_out(candidates: Sequence[Candidate]) -> str:
    return "".join(f"; {candidate.shortcoming()}" for candidate in candidates)


def _retry_s(query: RouteQuery, nearest: Candidate) -> float:
    """When the backlog will have shrunk by what is too much of it now."""
    late_s = nearest.prediction.ttft_s - (query.slo.ttft_ms or 0.0) / 1e3
    return min(RETRY_MOST_S, max(RETRY_LEAST_S, late_s))


def _cost(candidate: Candidate) -> float:
    return candidate.prediction.cost_s


def _ttft(candidate: Candidate) -> float:
    return candidate.prediction.ttft_s


def _total(candidate: Candidate) -> float:
    return candidate.prediction.total_s


def _overshoot(candidate: Candidate) -> float:
    return candidate.overshoot
