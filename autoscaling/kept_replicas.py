"""What a decision keeps against its plan: what runs while little was seen, what requests wait for; it plans nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from autoscaling.demand import DemandSettings
from autoscaling.fleet_plan import FleetTerms
from autoscaling.scaling import FleetObservation


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    replicas: Mapping[str, int]
    reasons: tuple[str, ...]
    """None where the plan is followed."""


def kept(
    planned: Mapping[str, int],
    current: Mapping[str, int],
    observation: FleetObservation,
    terms: FleetTerms,
    settings: DemandSettings,
) -> Kept:
    """Within the budget, and within every variant's bounds where `planned` and `current` are."""
    rules = (_while_little_was_seen, _last_while_requests_wait, _named)
    wanted, reasons = dict(planned), []
    for rule in rules:
        changed, why = rule(wanted, current, observation, terms, settings)
        if changed != wanted:
            wanted = changed
            reasons.append(why)
    return Kept(replicas=wanted, reasons=tuple(reasons))


def within_bounds(replicas: Mapping[str, int], terms: FleetTerms) -> bool:
    each = all(terms.bounds[name].min <= count <= terms.bounds[name].max for name, count in replicas.items())
    return each and sum(replicas.values()) <= terms.budget_replicas


def beside(wanted: Mapping[str, int], current: Mapping[str, int], budget_replicas: int) -> dict[str, int]:
    """What is wanted, and what runs besides until that is ready, as far as the budget goes."""
    both = {name: max(count, current.get(name, 0)) for name, count in wanted.items()}
    while sum(both.values()) > budget_replicas:
        name = max(both, key=lambda name: (both[name] - wanted[name], name))
        if both[name] == wanted[name]:
            break
        both[name] -= 1
    return both


def _while_little_was_seen(
    wanted: dict[str, int],
    current: Mapping[str, int],
    observation: FleetObservation,
    terms: FleetTerms,
    settings: DemandSettings,
) -> tuple[dict[str, int], str]:
    """A fleet shrinks to what `hold_s` have shown: after a restart of the controller they have not passed yet."""
    if observation.began_s is None or not within_bounds(current, terms):
        return wanted, ""
    watched_s = observation.now_s - observation.began_s
    if watched_s >= settings.hold_s:
        return wanted, ""
    both = {name: max(count, current.get(name, 0)) for name, count in wanted.items()}
    fits = sum(both.values()) <= terms.budget_replicas
    return both if fits else dict(current), f"keeps what runs: watched for {watched_s:.0f} s of {settings.hold_s:.0f} s"


def _last_while_requests_wait(
    wanted: dict[str, int],
    current: Mapping[str, int],
    observation: FleetObservation,
    terms: FleetTerms,
    settings: DemandSettings,
) -> tuple[dict[str, int], str]:
    """A request may wait for the first replica of a variant, and nothing says of which."""
    waiting = sum(seen.waiting for seen in observation.traffic)
    if not waiting:
        return wanted, ""
    last = {name: min(1, count) for name, count in current.items()}
    return beside(wanted, last, terms.budget_replicas), f"keeps the last of each variant: {waiting} requests wait"


def _named(
    wanted: dict[str, int],
    current: Mapping[str, int],
    observation: FleetObservation,
    terms: FleetTerms,
    settings: DemandSettings,
) -> tuple[dict[str, int], str]:
    """Requests that name a variant can go nowhere else, whatever is cheapest for their class."""
    found, words = dict(wanted), []
    for name, named_s in sorted(observation.named_s.items()):
        ago_s = observation.now_s - named_s
        has_room = sum(found.values()) < terms.budget_replicas and terms.bounds[name].max > 0
        if found.get(name) == 0 and has_room and ago_s < settings.idle_s:
            found[name] = 1
            words.append(f"{name} {ago_s:.0f} s ago")
    return found, f"keeps what requests name: {', '.join(words)}"
