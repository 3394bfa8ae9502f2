"""FleetSimulation: arrivals through production's router to replicas that a policy scales; it reads and writes no file.

Production's own objects decide: cluster.routing.SloRouter where a request goes, an autoscaling.scaling.ScalingPolicy
how many replicas there are, and a request waits, is tried once elsewhere and given up as serve_app/dispatch.py does it.
Modelled are the replicas (SimulatedReplica), the way of Loads to the router, and starts. A Load comes every
`frame_period_s` from a busy replica, every `load_period_s` from an idle one, and once what was sent there last counts
in it; in production a busy one sends its Load after each step.
Left out: the network, the ingress's own time, and the rest of the step that an answer to an admission waits for.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import count
from math import inf
from typing import Any

from autoscaling.fleet_plan import FleetTerms
from autoscaling.scaling import ClassTraffic, FleetObservation, ScalingDecision, ScalingPolicy
from autoscaling.simulator.arrivals import PREFIX_BLOCK_TOKENS, Arrival
from autoscaling.simulator.ledger import Ledger, SimulatedRequest
from autoscaling.simulator.replica import SimulatedReplica
from autoscaling.simulator.replica_set import Member, ReplicaSet
from cluster.output_lengths import OutputLengths
from cluster.rank import deadline_s
from cluster.replica_view import SETTLED_S
from cluster.routing import Choice, RouteQuery, SloRouter
from cluster.slo import Fallback

RETRY_S = 1.0
"""A queued request asks again at least so often (serve_app/dispatch.py)."""
UNBOUNDED_MAX_TOKENS = 1024
"""What a request that names no bound may generate (serve_app/prompts.py); traces tell no bounds."""
FOLLOWED_DECISIONS = 3
"""Routers follow the shares of a decision until so many further ones should have come."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulationSettings:
    max_context: int
    """Longer requests are refused."""
    decision_interval_s: float = 10.0
    load_period_s: float = 1.0
    frame_period_s: float = 0.2
    """Of a busy replica's Loads."""
    seed: int = 0
    """Of the router's ties."""
    counted_from_s: float = 0.0
    """What arrives or is held before warms the fleet up, and counts for nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedRun:
    terms: FleetTerms
    ledger: Ledger
    replicas: ReplicaSet
    decisions: tuple[tuple[float, ScalingDecision], ...]
    counted_from_s: float
    ended_s: float
    """When the last answer was complete."""

    @property
    def duration_s(self) -> float:
        """That counts."""
        return self.ended_s - self.counted_from_s

    def held_s(self, variant: str | None = None) -> float:
        """Of all replicas, or a variant's, from asking for them until they are gone."""
        return sum(
            member.held_s(self.ended_s) - member.held_s(self.counted_from_s)
            for member in self.replicas.members
            if variant in (None, member.variant)
        )


Listener = Callable[[float, FleetObservation, ScalingDecision], None]


class FleetSimulation:
    def __init__(
        self,
        terms: FleetTerms,
        policy: ScalingPolicy,
        settings: SimulationSettings,
        *,
        initial: Mapping[str, int],
        on_decision: Listener | None = None,
        most_repeats: int | None = None,
    ) -> None:
        """`initial` replicas are ready at the first arrival; `most_repeats`: 1 simulates every step by itself."""
        self._terms = terms
        self._policy = policy
        self._settings = settings
        self._on_decision = on_decision
        self._ledger = Ledger(dict(terms.classes), settings.counted_from_s)
        self._replicas = ReplicaSet(terms, most_repeats=most_repeats)
        self._outputs = OutputLengths()
        capabilities = terms.replicas.values()
        self._context = min(settings.max_context, *(each.kv_capacity_tokens for each in capabilities))
        self._router = SloRouter(
            {name: each.model for name, each in terms.replicas.items()},
            next(iter(capabilities)).limits,
            load_period_s=settings.load_period_s,
            rng=random.Random(settings.seed),
            prefix_block_tokens=PREFIX_BLOCK_TOKENS,
        )
        self._live: dict[str, SimulatedRequest] = {}
        self._events: list[tuple[float, int, Callable[[Any, float], None], Any]] = []
        self._numbers = count()
        self._by_heard: dict[str, Member] = {}
        """The running, whose Load came longest ago first."""
        self._settling: deque[tuple[float, Member]] = deque()
        """When a Load will count what was sent there, in order of time."""
        self._num_waiting = dict.fromkeys(terms.classes, 0)
        """Requests that are at no replica."""
        self._decided_s = 0.0
        self._decisions: list[tuple[float, ScalingDecision]] = []
        for member in self._replicas.scale(initial, 0.0).started:
            self._ready(member, 0.0)

    def run(self, arrivals: Iterable[Arrival]) -> SimulatedRun:
        """Until the last request is answered or given up."""
        self._at(self._settings.decision_interval_s, self._decide, None)
        now_s = 0.0
        pending, events = iter(arrivals), self._events
        arrival = next(pending, None)
        while arrival is not None or self._live:
            if arrival is not None and arrival.at_s < events[0][0]:
                now_s = arrival.at_s
                self._arrive(arrival)
                arrival = next(pending, None)
            else:
                now_s, _, happen, subject = heappop(events)
                happen(subject, now_s)
        return SimulatedRun(
            terms=self._terms,
            ledger=self._ledger,
            replicas=self._replicas,
            decisions=tuple(self._decisions),
            counted_from_s=self._settings.counted_from_s,
            ended_s=now_s,
        )

    def _at(self, at_s: float, happen: Callable[[Any, float], None], subject: object) -> None:
        heappush(self._events, (at_s, next(self._numbers), happen, subject))

    def _arrive(self, arrival: Arrival) -> None:
        self._ledger.arrived(arrival)
        if arrival.prompt_tokens + arrival.output_tokens > self._context:
            self._ledger.too_long(arrival)
            return
        slo = self._terms.classes[arrival.slo_class]
        request = SimulatedRequest(f"r{next(self._numbers)}", arrival, slo)
        self._live[request.request_id] = request
        self._place(request, request.tried, arrival.at_s)

    def _place(self, request: SimulatedRequest, exclude: frozenset[str], now_s: float) -> None:
        """Asks the router until a replica admits it, or it has to wait, or is given up."""
        arrival = request.arrival
        while True:
            self._hear(now_s)
            query = RouteQuery(
                slo=request.slo,
                prompt_tokens=arrival.prompt_tokens,
                expected_output_tokens=self._outputs.expected(arrival.slo_class),
                exclude=exclude,
                prefix=arrival.prefix,
            )
            chosen = self._router.choose(query, now_s)
            if not isinstance(chosen, Choice):
                self._wait(request, chosen.fallback, chosen.retry_after_s, now_s)
                return
            refused_s = self._submit(request, chosen.replica_id, now_s)
            if refused_s is None:
                return
            if request.tried:
                request.tried = frozenset()
                self._wait(request, request.slo.fallback, refused_s, now_s)
                return
            request.tried = exclude = frozenset({chosen.replica_id})

    def _submit(self, request: SimulatedRequest, replica_id: str, now_s: float) -> float | None:
        """None where the replica admits it, else when to come again."""
        arrival, member = request.arrival, self._replicas.running[replica_id]
        replica = member.replica
        max_tokens = max(arrival.output_tokens, min(UNBOUNDED_MAX_TOKENS, self._context - arrival.prompt_tokens))
        slo = request.slo
        self._router.dispatched(
            replica_id,
            request.request_id,
            arrival.prompt_tokens,
            max_tokens,
            now_s,
            slo.tpot_ms,
            prefix=arrival.prefix,
            objective=slo.objective,
        )
        before_s = replica.ends_s
        refused_s = replica.offer(
            request.request_id,
            now_s,
            prompt_tokens=arrival.prompt_tokens,
            output_tokens=arrival.output_tokens,
            max_tokens=max_tokens,
            objective=slo.objective,
            deadline_s=deadline_s(slo, now_s - arrival.at_s),
            prefix=arrival.prefix,
        )
        if refused_s is not None:
            self._tell(member, now_s)
            self._router.finished(request.request_id)
            return refused_s
        self._settling.append((now_s + SETTLED_S, member))
        if replica.ends_s != before_s:
            self._await_steps(replica)
        return None

    def _wait(self, request: SimulatedRequest, fallback: Fallback, retry_after_s: float, now_s: float) -> None:
        left_s = request.deadline_s - now_s
        if fallback != "queue" or left_s <= 0:
            del self._live[request.request_id]
            self._ledger.refused(request.arrival)
            return
        self._num_waiting[request.arrival.slo_class] += 1
        self._at(now_s + min(retry_after_s, left_s, RETRY_S), self._ask_again, request)

    def _ask_again(self, request: SimulatedRequest, now_s: float) -> None:
        self._num_waiting[request.arrival.slo_class] -= 1
        self._place(request, frozenset(), now_s)

    def _await_steps(self, replica: SimulatedReplica) -> None:
        if replica.ends_s < inf:
            self._at(replica.ends_s, self._finish_steps, replica)

    def _finish_steps(self, replica: SimulatedReplica, now_s: float) -> None:
        if replica.ends_s != now_s:
            return  # cut short, so that they ended before
        done = replica.finish_steps()
        self._await_steps(replica)
        for sequence in done.begun:
            self._live[sequence.request_id].first_token_s = now_s
        model = replica.capability.model
        for sequence in done.ended:
            request = self._live.pop(sequence.request_id)
            self._router.finished(sequence.request_id)
            self._outputs.ended(request.arrival.slo_class, request.arrival.output_tokens)
            self._ledger.answered(request, model.variant.name, model.variant.quality, now_s)
        if done.ended:
            self._replicas.end_if_drained(replica.replica_id, now_s)

    def _hear(self, now_s: float) -> None:
        """The Loads that have come since the router was last asked."""
        settling, running = self._settling, self._replicas.running
        while settling and settling[0][0] <= now_s:
            settled_s, member = settling.popleft()
            if member.heard_s < settled_s and member.replica.replica_id in running:
                self._tell(member, now_s)
        frame_s, idle_s = now_s - self._settings.frame_period_s, now_s - self._settings.load_period_s
        due = []
        for member in self._by_heard.values():
            if member.heard_s > frame_s:
                break
            if member.heard_s <= idle_s or member.replica.step is not None:
                due.append(member)
        for member in due:
            self._tell(member, now_s)

    def _tell(self, member: Member, now_s: float) -> None:
        load = member.replica.load(now_s)
        self._router.update(load, now_s)
        member.heard_s = now_s
        self._by_heard.pop(load.replica_id, None)
        self._by_heard[load.replica_id] = member

    def _decide(self, _: object, now_s: float) -> None:
        self._hear(now_s)
        observation = self._observation(now_s)
        decision = self._policy.decide(observation)
        self._decisions.append((now_s, decision))
        if self._on_decision is not None:
            self._on_decision(now_s, observation, decision)
        self._router.follow(decision.shares, now_s + FOLLOWED_DECISIONS * self._settings.decision_interval_s)
        changes = self._replicas.scale(decision.replicas, now_s)
        for member in changes.drained:
            self._router.remove(member.replica.replica_id)
            del self._by_heard[member.replica.replica_id]
        for member in changes.started:
            self._start(member, now_s)
        self._at(now_s + self._settings.decision_interval_s, self._decide, None)

    def _start(self, member: Member, now_s: float) -> None:
        self._at(now_s + member.replica.capability.cold_start_s, self._ready, member)

    def _ready(self, member: Member, now_s: float) -> None:
        if self._replicas.ready(member, now_s):
            self._tell(member, now_s)

    def _observation(self, now_s: float) -> FleetObservation:
        window_s, self._decided_s = now_s - self._decided_s, now_s
        starting: dict[str, tuple[float, ...]] = {}
        for member in self._replicas.starting.values():
            starting[member.variant] = (*starting.get(member.variant, ()), member.asked_s)
        draining: dict[str, int] = {}
        for member in self._replicas.draining.values():
            draining[member.variant] = draining.get(member.variant, 0) + 1
        return FleetObservation(
            now_s=now_s,
            loads=tuple(view.load for view in self._router.replicas.values()),
            starting=starting,
            draining=draining,
            traffic=tuple(
                ClassTraffic(
                    slo_class=name,
                    arrivals=window.arrivals,
                    window_s=window_s,
                    prompt_tokens=window.prompt_tokens,
                    output_tokens=window.output_tokens,
                    finished=window.finished,
                    refused=window.refused,
                    waiting=self._num_waiting[name],
                    burst=self._ledger.bursts[name].most(now_s),
                )
                for name, window in sorted(self._ledger.next_windows().items())
            ),
        )
