"""How many replicas of which variant a demand needs at the least cost, with the arithmetic; it knows no time, no Ray.

Every class of requests goes to one variant that may serve it, and takes rate / sustained rate of its replicas
(autoscaling/sustained.py, within the tightest limits of all classes there): these parts add. Of all assignments the
cheapest is taken: rounding up to whole replicas decides as much as the rates do, so it is not found class by class.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from math import ceil, inf

from autoscaling.bursts import BURST_S
from autoscaling.demand import ClassDemand
from autoscaling.scaling import PlannedLoad
from autoscaling.sustained import Mix, ReplicaCapability, Sustained, held_tokens, sustained
from cluster.slo import SloLimits, meets_floor

VARIANTS_A_CLASS = 3
"""The cheapest for it; 3 classes and 8 variants are 27 assignments then, and not 512."""
ROUNDING = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class VariantBounds:
    min: int
    max: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetTerms:
    """What does not change from one decision to the next."""

    replicas: Mapping[str, ReplicaCapability]
    """One of each variant."""
    bounds: Mapping[str, VariantBounds]
    classes: Mapping[str, SloLimits]
    budget_replicas: int
    """Of all variants together: GPUs times equal shares of one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassLoad:
    """A class on a variant."""

    demand: ClassDemand
    mix: Mix
    sustained: Sustained
    kv_sequences: float
    """That a replica's KV cache holds at a time."""
    burst_rate_per_s: float = 0.0
    """What one replica serves of a burst."""
    burst_ends_s: float = inf
    """When the last of a burst has to be served, from its first on: by the class's own TTFT limit, since requests with
    an earlier deadline go first."""
    beyond: str = ""
    """The limits that are not kept, in words."""

    @property
    def replicas(self) -> float:
        """Of full replicas: for what arrives in the long run, or for its bursts, whichever are more."""
        return max(self.demand.rate_per_s / self.sustained.rate_per_s, self._burst_replicas)

    def planned(self, variant: str) -> PlannedLoad:
        decoding = self.demand.rate_per_s * self.mix.output_tokens * self.sustained.tpot_s  # Little's law
        return PlannedLoad(
            slo_class=self.demand.slo_class,
            variant=variant,
            requests_per_s=self.demand.rate_per_s,
            rate_replicas=self.replicas,
            kv_replicas=decoding / self.kv_sequences,
            bound=self.sustained.bound,
        )

    @property
    def _burst_replicas(self) -> float:
        return self.demand.burst / (self.burst_rate_per_s * self.burst_ends_s) if self.burst_rate_per_s else 0.0

    def arithmetic(self) -> str:
        arithmetic = self.sustained.arithmetic(self.mix)
        told = f"{self.demand.slo_class} {self.demand.rate_per_s:.2f}/s of {arithmetic}{self.beyond}"
        if not self._burst_replicas:
            return told
        return (
            f"{told}; bursts of {self.demand.burst:.0f} in {BURST_S} s, to be served within {self.burst_ends_s:.1f} s"
            f" at {self.burst_rate_per_s:.2f}/s: {self._burst_replicas:.2f} replicas"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class VariantLoad:
    """A variant's part of the plan."""

    variant: str
    classes: tuple[ClassLoad, ...]
    needed: int
    """Replicas for the demand with the headroom; the plan may have more (a minimum) or fewer (a budget)."""

    def arithmetic(self, headroom: float, replicas: int) -> str:
        full = sum(load.replicas for load in self.classes)
        planned = "" if replicas == self.needed else f", planned {replicas}"
        parts = " + ".join(load.arithmetic() for load in self.classes)
        return f"{self.variant}: {full:.2f} full / {1 - headroom:.2f} -> {self.needed} replicas{planned} ({parts})"


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetPlan:
    replicas: Mapping[str, int]
    shares: Mapping[str, Mapping[str, float]]
    """Class -> variant -> share of its traffic."""
    loads: tuple[VariantLoad, ...]
    unserved: tuple[str, ...]
    """Classes that no variant may serve."""
    short: int
    """Replicas that the demand needs beyond the budget and the maxima."""
    cost_per_s: float
    headroom: float

    def planned(self) -> tuple[PlannedLoad, ...]:
        return tuple(part.planned(load.variant) for load in self.loads for part in load.classes)

    def arithmetic(self) -> str:
        lines = [load.arithmetic(self.headroom, self.replicas[load.variant]) for load in self.loads]
        lines += [f"{name}: no variant keeps its limits and its quality floor" for name in self.unserved]
        if self.short:
            lines.append(f"{self.short} replicas short of the demand: the budget or a variant's maximum binds")
        return "; ".join(lines) or "no demand"


def cheapest_plan(
    demand: Sequence[ClassDemand], terms: FleetTerms, headroom: float, at_least: Mapping[str, int] | None = None
) -> FleetPlan:
    """Within the budget and never below the minima; `at_least`: a fleet that only grows."""
    choices = {entry.slo_class: _choices(entry, terms) for entry in demand}
    served = [entry for entry in demand if choices[entry.slo_class]]
    unserved = tuple(entry.slo_class for entry in demand if entry not in served)
    floors = {name: max(bounds.min, (at_least or {}).get(name, 0)) for name, bounds in terms.bounds.items()}
    plans = (
        _plan(loads, terms, headroom, floors, unserved=unserved)
        for loads in _assignments(served, choices, terms, headroom)
    )
    return min(plans, key=lambda plan: (plan.short, plan.cost_per_s, tuple(sorted(plan.replicas.items()))))


def plan_within(
    demand: Sequence[ClassDemand], terms: FleetTerms, headroom: float, replicas: Mapping[str, int]
) -> FleetPlan | None:
    """The same fleet with the demand shared out anew; None where it does not hold it."""
    choices = {entry.slo_class: _choices(entry, terms) for entry in demand}
    served = [entry for entry in demand if choices[entry.slo_class]]
    for loads in _assignments(served, choices, terms, headroom):
        if all(load.needed <= replicas.get(load.variant, 0) for load in loads):
            unserved = tuple(entry.slo_class for entry in demand if entry not in served)
            return _fleet_plan(dict(replicas), loads, terms, headroom, unserved=unserved, short=0)
    return None


def may_serve(limits: SloLimits, replica: ReplicaCapability) -> bool:
    """By its quality; a class that degrades takes any where none has enough."""
    return meets_floor(replica.model.variant.quality, limits.min_quality)


def _choices(entry: ClassDemand, terms: FleetTerms) -> list[str]:
    """The variants that may serve a class and keep its limits, the cheapest a request first."""
    limits = terms.classes[entry.slo_class]
    able = [name for name, replica in terms.replicas.items() if terms.bounds[name].max and may_serve(limits, replica)]
    if not able and limits.fallback == "degrade":
        able = [name for name in terms.replicas if terms.bounds[name].max]
    ranked = sorted((*_cost_of_request(entry, terms, name), name) for name in able)
    return [name for broken, cost, name in ranked if broken == ranked[0][0] and cost < float("inf")][:VARIANTS_A_CLASS]


def _cost_of_request(entry: ClassDemand, terms: FleetTerms, name: str) -> tuple[int, float]:
    """How many of its limits cannot be kept there, and the price of a request then.

    Requests whose limits no variant keeps come all the same: a fleet that left them out would be too small for all.
    """
    replica, limits = terms.replicas[name], terms.classes[entry.slo_class]
    found, broken = _within(replica, _mix(entry, [limits]))
    return len(broken), replica.price_per_s / found.rate_per_s if found.rate_per_s else float("inf")


def _assignments(
    demand: Sequence[ClassDemand], choices: Mapping[str, Sequence[str]], terms: FleetTerms, headroom: float
) -> Iterator[tuple[VariantLoad, ...]]:
    for chosen in product(*(choices[entry.slo_class] for entry in demand)):
        groups: dict[str, list[ClassDemand]] = {}
        for entry, variant in zip(demand, chosen, strict=True):
            groups.setdefault(variant, []).append(entry)
        yield tuple(_load(variant, entries, terms, headroom) for variant, entries in sorted(groups.items()))


def _load(variant: str, entries: Sequence[ClassDemand], terms: FleetTerms, headroom: float) -> VariantLoad:
    limits = [terms.classes[entry.slo_class] for entry in entries]
    classes = tuple(
        _class_load(terms.replicas[variant], entry, _mix(entry, limits), terms.classes[entry.slo_class].ttft_ms)
        for entry in entries
    )
    full = sum(load.replicas for load in classes)
    return VariantLoad(variant=variant, classes=classes, needed=ceil(full / (1 - headroom) - ROUNDING))


def _class_load(replica: ReplicaCapability, entry: ClassDemand, mix: Mix, ttft_ms: float | None) -> ClassLoad:
    """Within its own limits it can be kept there; long prompts may still pass the TTFT limit of another class, whose
    own prompts are shorter and do not wait for all of them."""
    found, broken = _within(replica, mix)
    beyond = f", beyond its {' and '.join(broken)}" if broken else ""
    kv_sequences = replica.kv_capacity_tokens / held_tokens(replica, mix.prompt_tokens, mix.output_tokens)
    told = ClassLoad(demand=entry, mix=mix, sustained=found, kv_sequences=kv_sequences, beyond=beyond)
    if broken or not entry.burst or ttft_ms is None:
        return told
    # The queue of a burst is its own, so that of a steady state does not count.
    in_burst = sustained(replica, replace(mix, ttft_s=None)).rate_per_s
    return replace(told, burst_rate_per_s=in_burst, burst_ends_s=BURST_S + ttft_ms / 1e3)


def _within(replica: ReplicaCapability, mix: Mix) -> tuple[Sustained, tuple[str, ...]]:
    """What is sustained within as many of the limits as can be kept, and those that cannot."""
    looser = (
        (mix, ()),
        (replace(mix, ttft_s=None), ("TTFT",)),
        (replace(mix, ttft_s=None, tpot_s=None), ("TTFT", "TPOT")),
    )
    for limited, broken in looser:  # noqa: B007  (told to the caller)
        found = sustained(replica, limited)
        if found.rate_per_s:
            break
    return found, broken


def _mix(entry: ClassDemand, limits: Sequence[SloLimits]) -> Mix:
    """A class's mean request within the limits of all that are served with it."""
    return Mix(
        prompt_tokens=entry.prompt_tokens,
        output_tokens=max(1.0, entry.output_tokens),
        ttft_s=_tightest([limit.ttft_ms for limit in limits]),
        tpot_s=_tightest([limit.tpot_ms for limit in limits]),
    )


def _tightest(limits_ms: Sequence[float | None]) -> float | None:
    return min((limit / 1e3 for limit in limits_ms if limit is not None), default=None)


def _plan(
    loads: tuple[VariantLoad, ...],
    terms: FleetTerms,
    headroom: float,
    floors: Mapping[str, int],
    *,
    unserved: tuple[str, ...],
) -> FleetPlan:
    needed = {load.variant: load.needed for load in loads}
    replicas = {name: min(bounds.max, max(floors[name], needed.get(name, 0))) for name, bounds in terms.bounds.items()}
    _cut_to_budget(replicas, needed, floors, terms.budget_replicas)
    short = sum(max(0, count - replicas[name]) for name, count in needed.items())
    return _fleet_plan(replicas, loads, terms, headroom, unserved=unserved, short=short)


def _cut_to_budget(
    replicas: dict[str, int], needed: Mapping[str, int], floors: Mapping[str, int], budget_replicas: int
) -> None:
    """One by one, where what is left is the largest part of what is needed."""
    while sum(replicas.values()) > budget_replicas:
        able = [name for name, count in replicas.items() if count > floors[name]]
        if not able:
            return
        name = max(able, key=lambda name: ((replicas[name] - 1) / max(1, needed.get(name, 0)), name))
        replicas[name] -= 1


def _fleet_plan(
    replicas: Mapping[str, int],
    loads: tuple[VariantLoad, ...],
    terms: FleetTerms,
    headroom: float,
    *,
    unserved: tuple[str, ...],
    short: int,
) -> FleetPlan:
    return FleetPlan(
        replicas=replicas,
        shares={part.demand.slo_class: {load.variant: 1.0} for load in loads for part in load.classes},
        loads=loads,
        unserved=unserved,
        short=short,
        cost_per_s=sum(count * terms.replicas[name].price_per_s for name, count in replicas.items()),
        headroom=headroom,
    )
