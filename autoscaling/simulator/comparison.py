"""A run by the name of its policy, and the best of several targets for the baseline; it reads no file."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, get_args

from autoscaling.fleet_description import FleetDescription
from autoscaling.fleet_plan import FleetTerms
from autoscaling.scaling import ScalingPolicy
from autoscaling.simulator.arrivals import Arrival
from autoscaling.simulator.fleet import FleetSimulation, Listener, SimulatedRun, SimulationSettings
from autoscaling.simulator.policies import FixedReplicas, OngoingRequests, OngoingRequestsSettings

PolicyName = Literal["kv-aware", "ongoing-requests", "fixed"]
POLICIES: tuple[PolicyName, ...] = get_args(PolicyName)
TARGETS = (8, 16, 24, 32, 48, 64, 96, 128)
"""Ongoing requests a replica that are tried for the baseline: Ray's default of 2 would be a straw man."""
AIM = 0.99
RAY_INTERVAL_S = 1.0
"""Between decisions; Ray's control loop decides every 0.1 s on figures that are seconds old."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Experiment:
    """All but the policy's own settings."""

    description: FleetDescription
    policy: PolicyName
    initial: Mapping[str, int]
    max_context: int
    seed: int
    arrivals: Callable[[], Iterable[Arrival]]
    """The same each time."""
    warm_up_s: float = 0.0
    """The arrivals before count for nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    run: SimulatedRun
    policy: str
    """In words."""


def simulate(experiment: Experiment, *, target: float | None, on_decision: Listener | None = None) -> Finished:
    """`target`: ongoing requests a replica for the baseline; None takes the best of TARGETS."""
    if experiment.policy == "ongoing-requests" and target is None:
        return _best([simulate(experiment, target=float(each)) for each in TARGETS])
    terms = experiment.description.terms()
    policy, words = _policy(experiment, terms, target)
    settings = SimulationSettings(
        max_context=experiment.max_context,
        decision_interval_s=(
            RAY_INTERVAL_S if experiment.policy == "ongoing-requests" else experiment.description.settings.interval_s
        ),
        seed=experiment.seed,
        counted_from_s=experiment.warm_up_s,
    )
    simulation = FleetSimulation(terms, policy, settings, initial=experiment.initial, on_decision=on_decision)
    with _without_collector():
        return Finished(run=simulation.run(experiment.arrivals()), policy=words)


@contextmanager
def _without_collector() -> Iterator[None]:
    """A simulation makes no reference cycles: looking for them through all live requests takes 7 % of its time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _policy(experiment: Experiment, terms: FleetTerms, target: float | None) -> tuple[ScalingPolicy, str]:
    if experiment.policy == "kv-aware":
        return experiment.description.policy(), "kv-aware"
    if experiment.policy == "fixed" or target is None:
        counts = ", ".join(f"{count} {name}" for name, count in experiment.initial.items())
        return FixedReplicas(experiment.initial), f"fixed: {counts}"
    settings = OngoingRequestsSettings(target_ongoing_requests=target)
    return OngoingRequests(settings, terms.bounds), f"ongoing requests, {target:g} a replica"


def _best(finished: Sequence[Finished]) -> Finished:
    """The cheapest that keeps the aim in every class; where none does, the one that comes nearest."""

    def merit(each: Finished) -> tuple[bool, float, float]:
        entries = [entry for entry in each.run.ledger.classes.values() if entry.offered]
        lowest = min((entry.met / entry.offered for entry in entries), default=1.0)
        keeps = lowest >= AIM
        return (not keeps, 0.0 if keeps else -lowest, each.run.held_s())

    best = min(finished, key=merit)
    return Finished(run=best.run, policy=f"{best.policy} (the best of {TARGETS[0]} to {TARGETS[-1]})")
