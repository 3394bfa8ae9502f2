"""The fleet's terms at the speed that its replicas report: measured over predicted step times; it plans nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from statistics import fmean

from autoscaling.fleet_plan import FleetTerms
from cluster.load import Load

LEAST_SAMPLES = 20
"""Steps, until a replica's ratio is more than its first ones."""
SLOWEST, FASTEST = 3.0, 0.5
"""A ratio beyond is a fault of the profile, and no reason to buy three fleets."""
STEP = 0.05
"""Ratios are rounded to it: they are noisy, and each one costs a bisection."""


def step_time_ratios(loads: Iterable[Load]) -> dict[str, float]:
    """By variant, where its replicas have measured enough."""
    told: dict[str, list[float]] = {}
    for load in loads:
        if load.step_samples >= LEAST_SAMPLES:
            told.setdefault(load.variant, []).append(load.step_time_ratio)
    return {name: _bounded(fmean(ratios)) for name, ratios in told.items()}


def at_speed(terms: FleetTerms, ratios: Mapping[str, float]) -> FleetTerms:
    replicas = {
        name: replace(replica, step_time_ratio=ratios.get(name, 1.0)) for name, replica in terms.replicas.items()
    }
    return replace(terms, replicas=replicas)


def in_words(ratios: Mapping[str, float]) -> tuple[str, ...]:
    """Nothing of a variant that is as fast as predicted."""
    return tuple(
        f"{name}'s steps take {ratio:.2f} times the predicted" for name, ratio in sorted(ratios.items()) if ratio != 1
    )


def _bounded(ratio: float) -> float:
    return round(min(SLOWEST, max(FASTEST, ratio)) / STEP) * STEP
