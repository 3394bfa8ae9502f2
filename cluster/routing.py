"""SloRouter: a request and the replicas' loads -> variant and replica, with the reason; it knows no HTTP, no clock."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence, Set

import numpy as np
from numpy.typing import NDArray

from cluster.assessment import Assessment, Candidate, predict_for, wanted
from cluster.assessment import RouteQuery as RouteQuery
from cluster.background import place_background
from cluster.choice import Choice as Choice
from cluster.choice import Refusal as Refusal
from cluster.choice import choice_of
from cluster.cost_model import CostModel
from cluster.fallback import fallback, left_out, none_ready
from cluster.fleet_table import FleetTable
from cluster.load import Load
from cluster.overtaking import Overtaking
from cluster.prediction import ReplicaLimits
from cluster.prediction_kernel import Floats
from cluster.prefix_affinity import Holder, PrefixAffinity
from cluster.prefix_hash import PREFIX_BLOCK_TOKENS
from cluster.replica_view import Dispatch, ReplicaView
from cluster.slo import Objective, meets_floor
from cluster.ties import TIE, Ties
from cluster.waiting_room import most_requests

Places = NDArray[np.bool_]
"""Which of a table's replicas."""

PRIOR_AFTER_PERIODS = 2
INELIGIBLE_AFTER_PERIODS = 5
LATER = 1.25
"""A prefix makes no request without a TTFT limit end so many times later than elsewhere."""
NAMED_VARIANTS = 4
"""In a reason, of those that keep the limits; a header is one line."""
NAMED_LEFT_OUT = 2


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
        prefix_block_tokens: int = PREFIX_BLOCK_TOKENS,
    ) -> None:
        """`prefix_block_tokens` of a prompt stand behind each hash of a query's prefix."""
        self.models = models
        self.limits = limits
        self.load_period_s = load_period_s
        self.num_ingresses = num_ingresses
        self.rng = rng or random.Random()
        self.replicas: dict[str, ReplicaView] = {}
        self._replica_of: dict[str, str] = {}
        self._ties = Ties(self.rng)
        self._affinity = PrefixAffinity(prefix_block_tokens)
        self._table: FleetTable | None = None
        self._overtaking = Overtaking([], num_ingresses=num_ingresses, max_sequences=limits.max_sequences)
        self._places: dict[str, int] = {}
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
            if view.is_followed_by_restart(load):
                self._affinity.forget(load.replica_id)
            view.received(load, now_s)

    def remove(self, replica_id: str) -> None:
        self.replicas.pop(replica_id, None)
        self._affinity.forget(replica_id)
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
        *,
        prefix: Sequence[int] = (),
        objective: Objective = "latency",
    ) -> None:
        """Counted until a Load does so; later requests are not put where they break `tpot_ms`, what it was promised.

        `prefix` as the query had it: the replica is taken to hold it from now on.
        """
        view = self.replicas.get(replica_id)
        if view is not None:
            dispatch = Dispatch(
                at_s=now_s, prompt_tokens=prompt_tokens, max_tokens=max_tokens, tpot_ms=tpot_ms, objective=objective
            )
            view.dispatched(request_id, dispatch)
            self._affinity.dispatched(replica_id, prefix, view.load.kv_tokens_capacity)
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
        limits, objective = self.limits, query.slo.objective
        if query.slo.is_background:
            views = [table.views[place] for place in np.flatnonzero(eligible).tolist()]
            return place_background(query, views, self.models, limits, self.num_ingresses, self._ties)
        most = most_requests(objective, max_sequences=limits.max_sequences, max_waiting=limits.max_waiting)
        able = eligible & table.has_room(most)
        backlogs = table.backlogs(now_s - PRIOR_AFTER_PERIODS * self.load_period_s)
        if objective == "latency":
            backlogs = self._overtaking.backlogs(backlogs)
        assessment = Assessment(query, table.replicas, self.limits, backlogs, table.promised_tpot_ms)
        if query.model_variant is None and np.count_nonzero(meeting := able & assessment.meeting()):
            shares = self._shares.get(query.slo.name, {}) if now_s <= self._shares_until_s else {}
            return self._cheapest(assessment, meeting, able, shares)
        if query.model_variant is not None:
            return self._of_named_variant(query.model_variant, assessment, able)
        candidates = [assessment.candidate(place) for place in np.flatnonzero(able).tolist()]
        return fallback(query, candidates, table.one_of_each, limits, self.models, self._ties)

    def _fleet(self) -> FleetTable:
        if self._table is None or self._table.models is not self.models:
            views = [view for view in self.replicas.values() if view.load.variant in self.models]
            self._table = FleetTable(views, self.models, self.num_ingresses)
            self._overtaking = Overtaking(
                views, num_ingresses=self.num_ingresses, max_sequences=self.limits.max_sequences
            )
            self._places = {view.load.replica_id: place for place, view in enumerate(views)}
        self._table.refresh(self._changed)
        self._overtaking.refresh(self._changed)
        self._changed.clear()
        return self._table

    def _cheapest(self, assessment: Assessment, meeting: Places, able: Places, shares: Mapping[str, float]) -> Choice:
        slo, predictions = assessment.query.slo, assessment.predictions
        if slo.objective == "throughput":
            # Cheapest is the fullest batch, but not one that has to be waited for while another has room.
            at_once = meeting & (predictions.wait_s == 0)
            meeting = at_once if np.count_nonzero(at_once) else meeting
            places = self._best_by_variant(assessment, meeting, predictions.cost_s)
            scores, what = predictions.cost_s, "least cost"
        else:
            places = self._best_by_variant(assessment, meeting, predictions.ttft_s)
            bounded = slo.ttft_ms is not None or slo.tpot_ms is not None
            scores, what = (predictions.cost_s, "cheapest") if bounded else (predictions.total_s, "fastest")
        score_of = dict(zip(places, scores[list(places.values())].tolist(), strict=True))
        if planned := self._planned(list(places), shares):
            chosen, what = planned, "planned"
        else:
            chosen = self._ties.pick(list(score_of), list(score_of.values()))
        others = self._nearest_of_others(assessment, able, places.keys())
        in_seconds = scores is predictions.total_s
        named = sorted(places, key=score_of.__getitem__)[:NAMED_VARIANTS]
        figures = ", ".join([self._figure(name, score_of[name], in_seconds) for name in named])
        reason = f"{what} of {len(places)} meeting {wanted(slo)} ({figures}{left_out(others)})"
        place = places[chosen]
        if holder := self._holder(assessment, meeting, place):
            place, reason = holder.place, f"{reason}; {_holding(holder, assessment.query)}"
        return choice_of(chosen, assessment.replicas.ids[place], predictions.of_replica(place), reason)

    def _planned(self, variants: Sequence[str], shares: Mapping[str, float]) -> str | None:
        """By its share, among the variants that keep the limits."""
        weights = [shares.get(name, 0.0) for name in variants]
        return self.rng.choices(variants, weights)[0] if any(weights) else None

    def _best_by_variant(self, assessment: Assessment, among: Places, scores: Floats) -> dict[str, int]:
        return assessment.least(among, scores, TIE, self.rng.random())

    def _holder(self, assessment: Assessment, among: Places, best: int) -> Holder | None:
        """Of the best one's variant, the replica among those that holds the most of the request's prefix."""
        lengths = self._affinity.lengths(assessment.query.prefix)
        if not lengths:
            return None
        slo, predictions, variant_of = assessment.query.slo, assessment.predictions, assessment.replicas.variant_of
        among = among & (variant_of == variant_of[best])
        if slo.objective == "latency" and slo.ttft_ms is None:
            among &= predictions.total_s <= LATER * predictions.total_s[best]
        return self._affinity.holder(lengths, self._places, among, predictions.ttft_s)

    def _nearest_of_others(self, assessment: Assessment, among: Places, kept: Set[str]) -> list[Candidate]:
        """Of the first variants not kept the replica nearest to its limits."""
        if len(kept) == len(assessment.replicas.names):
            return []
        nearest = assessment.least(among, assessment.overshoot, 1.0, 0.0)
        places = [place for name, place in nearest.items() if name not in kept]
        return [assessment.candidate(place) for place in places[:NAMED_LEFT_OUT]]

    def _figure(self, variant: str, score: float, in_seconds: bool) -> str:
        unit = "s" if in_seconds else f"{self.models[variant].accelerator.kind}-s"
        return f"{variant} {score:.2g} {unit}"

    def _of_named_variant(self, variant: str, assessment: Assessment, able: Places) -> Choice | Refusal:
        """`able` are replicas of that variant."""
        query, predictions = assessment.query, assessment.predictions
        if not np.count_nonzero(able):
            return none_ready(query, self.models, f"no replica of {variant} can take a request now")
        place, reason = self._best_by_variant(assessment, able, predictions.ttft_s)[variant], "named by the request"
        if holder := self._holder(assessment, able & assessment.in_time(), place):
            place, reason = holder.place, f"{reason}; {_holding(holder, query)}"
        return choice_of(variant, assessment.replicas.ids[place], predictions.of_replica(place), reason)

    def _blind(self, query: RouteQuery, ready: list[ReplicaView]) -> Choice | Refusal:
        """No replica has been heard of lately: at random by capacity, as the last loads would send all to one."""
        floor = 0.0 if query.model_variant is not None else query.slo.min_quality
        fitting = [view for view in ready if meets_floor(self.models[view.load.variant].variant.quality, floor)]
        if not fitting:
            return none_ready(query, self.models, f"no replica with quality>={floor:.2f} is ready")
        view = self.rng.choices(fitting, [view.load.kv_tokens_capacity for view in fitting])[0]
        backlog = view.backlog(fresh=False, num_ingresses=self.num_ingresses)
        prediction = predict_for(query, self.models[view.load.variant], self.limits, backlog)
        reason = "loads of all replicas are stale, so at random by capacity"
        return choice_of(view.load.variant, view.load.replica_id, prediction, reason)


def _holding(holder: Holder, query: RouteQuery) -> str:
    return f"{min(holder.prefix_tokens, query.prompt_tokens)} of {query.prompt_tokens} prompt tokens were there before"
