"""ReplicaSet: simulated replicas from the moment they are asked for until they are gone; it decides on no number."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from autoscaling.fleet_plan import FleetTerms
from autoscaling.simulator.replica import SimulatedReplica
from autoscaling.simulator.step_times import StepTimes


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaCounts:
    """At one moment, by variant."""

    at_s: float
    running: Mapping[str, int]
    starting: Mapping[str, int]
    draining: Mapping[str, int]


@dataclass(slots=True, eq=False)
class Member:
    """One replica with its account."""

    replica: SimulatedReplica
    asked_s: float
    heard_s: float = float("-inf")
    """When the router last had its Load."""
    ended_s: float | None = None

    @property
    def variant(self) -> str:
        return self.replica.capability.variant

    def held_s(self, until_s: float) -> float:
        end_s = until_s if self.ended_s is None else min(self.ended_s, until_s)
        return max(0.0, end_s - self.asked_s)


@dataclass(slots=True)
class Changes:
    """What a new target comes to."""

    started: list[Member] = field(default_factory=list)
    drained: list[Member] = field(default_factory=list)


class ReplicaSet:
    """Cold start and draining count as held: both keep their accelerator."""

    def __init__(self, terms: FleetTerms, *, most_repeats: int | None) -> None:
        self.members: list[Member] = []
        """All there ever were."""
        self.starting: dict[str, Member] = {}
        self.running: dict[str, Member] = {}
        self.draining: dict[str, Member] = {}
        self.history: list[ReplicaCounts] = []
        self.most_held = 0
        self._terms = terms
        self._most_repeats = most_repeats
        self._times = {name: StepTimes(capability.model) for name, capability in terms.replicas.items()}
        self._numbers: Counter[str] = Counter()

    @property
    def num_held(self) -> int:
        return len(self.starting) + len(self.running) + len(self.draining)

    def scale(self, target: Mapping[str, int], now_s: float) -> Changes:
        """Within the budget, whatever the target; what is draining has to end before others take its place."""
        changes = Changes()
        for variant, count in sorted(target.items()):
            starting = [member for member in self.starting.values() if member.variant == variant]
            running = [member for member in self.running.values() if member.variant == variant]
            surplus = len(starting) + len(running) - count
            for member in reversed(starting[max(0, len(starting) - max(0, surplus)) :]):
                del self.starting[member.replica.replica_id]
                member.ended_s = now_s
                surplus -= 1
            by_requests = sorted(running, key=lambda member: member.replica.num_requests)
            for member in by_requests[: max(0, surplus)]:
                self._drain(member, now_s)
                changes.drained.append(member)
        for variant, count in sorted(target.items()):
            held = [*self.starting.values(), *self.running.values()]
            missing = count - sum(member.variant == variant for member in held)
            for _ in range(min(missing, self._terms.budget_replicas - self.num_held)):
                changes.started.append(self._ask_for(variant, now_s))
        self._note(now_s)
        return changes

    def ready(self, member: Member, now_s: float) -> bool:
        """False where it was given up while it started."""
        if self.starting.pop(member.replica.replica_id, None) is None:
            return False
        self.running[member.replica.replica_id] = member
        self._note(now_s)
        return True

    def end_if_drained(self, replica_id: str, now_s: float) -> None:
        member = self.draining.get(replica_id)
        if member is not None and not member.replica.num_requests:
            del self.draining[replica_id]
            member.ended_s = now_s
            self._note(now_s)

    def _ask_for(self, variant: str, now_s: float) -> Member:
        replica_id = f"{variant}-{self._numbers[variant]}"
        self._numbers[variant] += 1
        capability = self._terms.replicas[variant]
        replica = SimulatedReplica(replica_id, capability, self._times[variant], most_repeats=self._most_repeats)
        member = self.starting[replica_id] = Member(replica, now_s)
        self.members.append(member)
        self.most_held = max(self.most_held, self.num_held)
        return member

    def _drain(self, member: Member, now_s: float) -> None:
        replica_id = member.replica.replica_id
        self.draining[replica_id] = self.running.pop(replica_id)
        self.end_if_drained(replica_id, now_s)

    def _note(self, now_s: float) -> None:
        counts = ReplicaCounts(
            at_s=now_s,
            running=_by_variant(self.running),
            starting=_by_variant(self.starting),
            draining=_by_variant(self.draining),
        )
        if self.history and self.history[-1].at_s == now_s:
            self.history.pop()
        last = self.history[-1] if self.history else None
        if last is None or (last.running, last.starting, last.draining) != (
            counts.running,
            counts.starting,
            counts.draining,
        ):
            self.history.append(counts)


def _by_variant(members: Mapping[str, Member]) -> dict[str, int]:
    return dict(sorted(Counter(member.variant for member in members.values()).items()))
