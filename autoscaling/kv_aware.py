"""KvAwarePolicy: what arrives and what runs -> how many replicas of each variant next; it starts and stops none.

It grows to the forecast of the time that a cold start takes, and shrinks to the recent peak only where the smaller
fleet would still hold it with more headroom than growing asks for: so neither noise nor N / (N - 1) makes it swing.
A change of variants is a growth first; what it makes superfluous goes once the new replicas run. What requests wait for
or name is kept, and so is everything while too little was seen to shrink (autoscaling/kept_replicas.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from autoscaling.demand import ClassDemand, ClassSeries, DemandForecast, DemandSettings
from autoscaling.fleet_plan import FleetPlan, FleetTerms, cheapest_plan, plan_within
from autoscaling.kept_replicas import beside, kept, within_bounds
from autoscaling.measured_speed import MeasuredSpeeds, Speed, at_speed, in_words
from autoscaling.scaling import FleetObservation, PlannedLoad, ScalingDecision


@dataclass(frozen=True, slots=True, kw_only=True)
class KvAwareSettings:
    headroom: float = 0.15
    hysteresis: float = 0.10
    """Headroom that a smaller fleet must leave beside the other."""
    swap_gain: float = 0.15
    """A growing fleet changes its variants only where that saves so much of its cost."""
    interval_s: float = 10.0
    demand: DemandSettings = field(default_factory=DemandSettings)


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyMemory:
    """All that further decisions rest on beside what they are told."""

    classes: Mapping[str, ClassSeries] = field(default_factory=dict)
    speeds: Mapping[str, Speed] = field(default_factory=dict)
    """By variant."""


class KvAwarePolicy:
    """autoscaling.scaling.ScalingPolicy; the same observations in the same order give the same decisions."""

    def __init__(self, terms: FleetTerms, settings: KvAwareSettings) -> None:
        self._terms = terms
        """At the predicted speed."""
        self._settings = settings
        self._forecast = DemandForecast(settings.demand, terms.classes)
        self._speeds = MeasuredSpeeds()

    @property
    def memory(self) -> PolicyMemory:
        """To be read, as JSON for example, at once: the next decision changes it."""
        return PolicyMemory(classes=self._forecast.classes, speeds=self._speeds.variants)

    def resume(self, memory: PolicyMemory) -> None:
        """Goes on where another left off; `memory` is its own from now on."""
        self._forecast.classes, self._speeds.variants = dict(memory.classes), dict(memory.speeds)

    def decide(self, observation: FleetObservation) -> ScalingDecision:
        self._forecast.observe(observation.traffic, observation.now_s)
        horizon_s = self._settings.interval_s + max(replica.cold_start_s for replica in self._terms.replicas.values())
        expected = self._forecast.expected(horizon_s)
        self._forecast.remember(expected)
        self._speeds.observe(observation.loads, observation.now_s)
        ratios = self._speeds.ratios()
        terms = at_speed(self._terms, ratios)
        running = _running(observation, terms)
        current = {name: count + len(observation.starting.get(name, ())) for name, count in running.items()}
        target, why, loads = self._target(expected, current, running, terms)
        holding = kept(target, current, observation, terms, self._settings.demand)
        target = _beside_draining(holding.replicas, current, terms.budget_replicas - sum(observation.draining.values()))
        shared = plan_within(expected, terms, 0.0, running)
        return ScalingDecision(
            replicas=target,
            shares=shared.shares if shared else {},
            reason="; ".join([*holding.reasons, why, *in_words(ratios)]),
            loads=loads,
        )

    def _target(
        self,
        expected: Sequence[ClassDemand],
        current: Mapping[str, int],
        running: Mapping[str, int],
        terms: FleetTerms,
    ) -> tuple[Mapping[str, int], str, tuple[PlannedLoad, ...]]:
        headroom = self._settings.headroom
        if not within_bounds(current, terms):
            plan = cheapest_plan(expected, terms, headroom)
            return plan.replicas, f"outside its bounds: {plan.arithmetic()}", plan.planned()
        stays = plan_within(expected, terms, headroom, current)
        if stays is None:
            plan = self._grown(expected, current, terms)
            target = beside(plan.replicas, current, terms.budget_replicas)
            return target, f"grows: {plan.arithmetic()}", plan.planned()
        held = _larger_of_each(expected, self._forecast.held())
        smaller = cheapest_plan(held, terms, min(0.95, headroom + self._settings.hysteresis))
        if smaller.cost_per_s >= stays.cost_per_s or smaller.short > 0:
            return current, f"stays: {stays.arithmetic()}", stays.planned()
        ready = {name: min(count, running[name]) for name, count in smaller.replicas.items()}
        if plan_within(expected, terms, headroom, ready) is None:
            # The cheaper fleet does not run yet: first what it has more of, then what it has less of.
            both = beside(smaller.replicas, current, terms.budget_replicas)
            return both, f"grows towards a cheaper fleet: {smaller.arithmetic()}", smaller.planned()
        return smaller.replicas, f"shrinks: {smaller.arithmetic()}", smaller.planned()

    def _grown(self, expected: Sequence[ClassDemand], current: Mapping[str, int], terms: FleetTerms) -> FleetPlan:
        """More of what there is, unless another choice of variants is much cheaper."""
        headroom = self._settings.headroom
        larger = cheapest_plan(expected, terms, headroom, at_least=current)
        anew = cheapest_plan(expected, terms, headroom)
        saves = anew.cost_per_s < (1 - self._settings.swap_gain) * larger.cost_per_s
        return anew if anew.short < larger.short or (saves and anew.short == larger.short) else larger


def _running(observation: FleetObservation, terms: FleetTerms) -> dict[str, int]:
    counts = dict.fromkeys(terms.bounds, 0)
    for load in observation.loads:
        counts[load.variant] += 1
    return counts


def _larger_of_each(first: Sequence[ClassDemand], second: Sequence[ClassDemand]) -> list[ClassDemand]:
    larger = {entry.slo_class: entry for entry in first}
    for entry in second:
        other = larger.get(entry.slo_class)
        if other is None or other.rate_per_s < entry.rate_per_s:
            larger[entry.slo_class] = entry
    return [larger[name] for name in sorted(larger)]


def _beside_draining(target: Mapping[str, int], current: Mapping[str, int], available: int) -> dict[str, int]:
    """Draining replicas still hold their accelerators: growth waits for them, what runs does not."""
    allowed = dict(target)
    while sum(allowed.values()) > available:
        growing = [name for name, count in allowed.items() if count > current.get(name, 0)]
        if not growing:
            break
        name = max(growing, key=lambda name: (allowed[name] - current.get(name, 0), name))
        allowed[name] -= 1
    return allowed
