"""SloRouter: a request and the replicas' loads -> variant and replica, with the reason; it knows no HTTP, no clock."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence, Set
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from cluster.assessment import Assessment, Candidate, best_of_each_variant, kept_when_idle, predict_for, wanted
from cluster.assessment import RouteQuery as RouteQuery
from cluster.choice import Choice as Choice
from cluster.choice import Refusal as Refusal
from cluster.choice import choice_among, choice_of
from cluster.cost_model import CostModel
from cluster.fleet_table import FleetTable
from cluster.load import Load
from cluster.prediction import ReplicaLimits
from cluster.prediction_kernel import Floats
from cluster.replica_view import Dispatch, ReplicaView
from cluster.slo import Fallback, meets_floor

Item = TypeVar("Item")
Places = NDArray[np.bool_]
"""Which of a table's replicas."""

PRIOR_AFTER_PERIODS = 2
INELIGIBLE_AFTER_PERIODS = 5
TIE = 1.01
"""Predictions this close are equal: they are not exact to 1 %, and routers that break ties alike make a herd."""
RETRY_LEAST_S, RETRY_MOST_S = 0.05, 10.0
NAMED_VARIANTS = 4
"""In a reason, of those that keep the limits; a header is one line."""
NAMED_LEFT_OUT = 2
STARTING_RETRY_S = 1.0
"""How soon to ask again where no replica of a fitting variant is ready."""


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
        self._table: FleetTable | None = None
        self._changed: set[str] = set()
        self._shares: Mapping[str, Mapping[str, float]] = {}
        self._shares_until_s = float("-inf")

    def follow(self, shares: Mapping[str, Mapping[str, float]], until_s: float) -> None:
        """The planner's shares, class -> variant -> share: followed until then wherever the limits are kept there."""
        self._shares, self._shares_until_s = shares, until_s

    def update(self, load: Load, now_s: float) -> None:
        view = self.replicas.get(load.replica_id)
        self._changed.add(load.replica_id)
        if view is None:
            self.replicas[load.replica_id] = ReplicaView(load=load, received_s=now_s)
            self._table = None
        else:
            view.received(load, now_s)

    def remove(self, replica_id: str) -> None:
        self.replicas.pop(replica_id, None)
        self._table = None
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
            self._changed.add(replica_id)
            self._replica_of[request_id] = replica_id

    def finished(self, request_id: str) -> None:
        replica_id = self._replica_of.pop(request_id, "")
        view = self.replicas.get(replica_id)
        if view is not None:
            view.finished(request_id)
            self._changed.add(replica_id)

    def choose(self, query: RouteQuery, now_s: float) -> Choice | Refusal:
        table = self._fleet()
        ready = table.ready(query.exclude, query.model_variant)
        eligible = ready & (table.received_s >= now_s - INELIGIBLE_AFTER_PERIODS * self.load_period_s)
        if not np.count_nonzero(eligible) and np.count_nonzero(ready):
            return self._blind(query, [table.views[place] for place in np.flatnonzero(ready).tolist()])
        able = eligible & table.has_room(self.limits.max_sequences + self.limits.max_waiting)
        backlogs = table.backlogs(now_s - PRIOR_AFTER_PERIODS * self.load_period_s)
        assessment = Assessment(query, table.replicas, self.limits, backlogs, table.promised_tpot_ms)
        if query.model_variant is None and np.count_nonzero(meeting := able & assessment.meeting()):
            shares = self._shares.get(query.slo.name, {}) if now_s <= self._shares_until_s else {}
            return self._cheapest(assessment, meeting, able, shares)
        candidates = [assessment.candidate(place) for place in np.flatnonzero(able).tolist()]
        if query.model_variant is not None:
            return self._of_named_variant(query, candidates)
        return self._fallback(query, candidates)

    def _fleet(self) -> FleetTable:
        if self._table is None or self._table.models is not self.models:
            views = [view for view in self.replicas.values() if view.load.variant in self.models]
            self._table = FleetTable(views, self.models, self.num_ingresses)
        self._table.refresh(self._changed)
        self._changed.clear()
        return self._table

    def _cheapest(self, assessment: Assessment, meeting: Places, able: Places, shares: Mapping[str, float]) -> Choice:
        slo, predictions = assessment.query.slo, assessment.predictions
        if slo.objective == "throughput":
            # Cheapest is the fullest batch, but not one that has to be waited for while another has room.
            at_once = meeting & (predictions.wait_s == 0)
            places = self._best_by_variant(
                assessment, at_once if np.count_nonzero(at_once) else meeting, predictions.cost_s
            )
            scores, what = predictions.cost_s, "least cost"
        else:
            places = self._best_by_variant(assessment, meeting, predictions.ttft_s)
            bounded = slo.ttft_ms is not None or slo.tpot_ms is not None
            scores, what = (predictions.cost_s, "cheapest") if bounded else (predictions.total_s, "fastest")
        score_of = dict(zip(places, scores[list(places.values())].tolist(), strict=True))
        if planned := self._planned(list(places), shares):
            chosen, what = planned, "planned"
        else:
            chosen = self._pick(list(score_of), list(score_of.values()))
        others = self._nearest_of_others(assessment, able, places.keys())
        in_seconds = scores is predictions.total_s
        named = sorted(places, key=score_of.__getitem__)[:NAMED_VARIANTS]
        figures = ", ".join([self._figure(name, score_of[name], in_seconds) for name in named])
        reason = f"{what} of {len(places)} meeting {wanted(slo)} ({figures}{_left_out(others)})"
        place = places[chosen]
        return choice_of(chosen, assessment.replicas.ids[place], predictions.of_replica(place), reason)

    def _planned(self, variants: Sequence[str], shares: Mapping[str, float]) -> str | None:
        """By its share, among the variants that keep the limits."""
        weights = [shares.get(name, 0.0) for name in variants]
        return self.rng.choices(variants, weights)[0] if any(weights) else None

    def _best_by_variant(self, assessment: Assessment, among: Places, scores: Floats) -> dict[str, int]:
        return assessment.least(among, scores, TIE, self.rng.random())

    def _nearest_of_others(self, assessment: Assessment, among: Places, kept: Set[str]) -> list[Candidate]:
        """Of the first variants not kept the replica nearest to its limits."""
        if len(kept) == len(assessment.replicas.names):
            return []
        nearest = assessment.least(among, assessment.overshoot, 1.0, 0.0)
        places = [place for name, place in nearest.items() if name not in kept]
        return [assessment.candidate(place) for place in places[:NAMED_LEFT_OUT]]

    def _pick(self, items: Sequence[Item], scores: Sequence[float]) -> Item:
        """One of those with the least score."""
        tied = min(scores) * TIE
        return self._pick_tied([item for item, score in zip(items, scores, strict=True) if score <= tied])

    def _pick_tied(self, items: Sequence[Item]) -> Item:
        return items[0] if len(items) == 1 else self.rng.choice(items)

    def _pick_by(self, candidates: Sequence[Candidate], score: Callable[[Candidate], float]) -> Candidate:
        return self._pick(candidates, [score(candidate) for candidate in candidates])

    def _figure(self, variant: str, score: float, in_seconds: bool) -> str:
        unit = "s" if in_seconds else f"{self.models[variant].accelerator.kind}-s"
        return f"{variant} {score:.2g} {unit}"

    def _of_named_variant(self, query: RouteQuery, candidates: Sequence[Candidate]) -> Choice | Refusal:
        if not candidates:
            return self._none_ready(query, f"no replica of {query.model_variant} can take a request now")
        return choice_among(self._pick_by(candidates, _ttft), "named by the request")

    def _fallback(self, query: RouteQuery, candidates: list[Candidate]) -> Choice | Refusal:
        slo = query.slo
        if not candidates:
            return self._none_ready(query, "no replica can take a request now")
        why = f"none meets {wanted(slo)}{_left_out(best_of_each_variant(candidates))}"
        fitting = [candidate for candidate in candidates if not candidate.below_floor]
        if slo.fallback == "degrade":
            return choice_among(self._degraded(candidates), f"degraded, {why}", degraded=True)
        if not fitting:
            return self._none_ready(query, why)
        nearest = self._pick_by(fitting, _overshoot)
        if slo.fallback == "reject":
            return Refusal(reason=why, retry_after_s=_retry_s(query, nearest), fallback="reject")
        table = self._fleet()
        kept = kept_when_idle(query, table.one_of_each, self.limits)
        idle_keeps = {name for name, is_kept in zip(table.one_of_each.ids, kept.tolist(), strict=True) if is_kept}
        if any(candidate.variant in idle_keeps for candidate in fitting):
            return Refusal(reason=f"queued, {why}", retry_after_s=_retry_s(query, nearest), fallback="queue")
        # What no idle replica keeps, waiting does not mend.
        return choice_among(nearest, f"best effort, {why}, idle or not", degraded=True)

    def _degraded(self, candidates: list[Candidate]) -> Candidate:
        """The best quality that keeps the latency limits; if none keeps them, the one nearest to them."""
        in_time = [candidate for candidate in candidates if not candidate.misses]
        if not in_time:
            return self._pick_by([c for c in candidates if not c.below_floor] or candidates, _overshoot)
        best = max(candidate.quality or 0.0 for candidate in in_time)
        return self._pick_by([candidate for candidate in in_time if (candidate.quality or 0.0) == best], _ttft)

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
        return choice_of(view.load.variant, view.load.replica_id, prediction, reason)


def _left_out(candidates: Sequence[Candidate]) -> str:
    return "".join(f"; {candidate.shortcoming()}" for candidate in candidates)


def _retry_s(query: RouteQuery, nearest: Candidate) -> float:
    """When the backlog will have shrunk by what is too much of it now."""
    late_s = nearest.prediction.ttft_s - (query.slo.ttft_ms or 0.0) / 1e3
    return min(RETRY_MOST_S, max(RETRY_LEAST_S, late_s))


def _ttft(candidate: Candidate) -> float:
    return candidate.prediction.ttft_s


def _overshoot(candidate: Candidate) -> float:
    return candidate.overshoot
