"""The fleet's terms at the speed that its replicas report: measured over predicted step times; it plans nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from math import exp
from statistics import fmean

from autoscaling.fleet_plan import FleetTerms
from cluster.load import Load

LEAST_SAMPLES = 20
"""Steps, until a replica's ratio is more than its first ones."""
SLOWEST, FASTEST = 3.0, 0.5
"""A ratio beyond is a fault of the profile, and no reason to buy three fleets."""
SMOOTHED_S = 60.0
"""Time constant."""
STEP = 0.05
"""Ratios are rounded to it: they are noisy, and each one costs a bisection."""


@dataclass(slots=True, kw_only=True)
class Speed:
    """Of a variant, as plain values."""

    ratio: float
    at_s: float
    """When it was last told."""


class MeasuredSpeeds:
    """Ratios smoothed over time: a replica's own is of its last tens of steps."""

    def __init__(self) -> None:
        self.variants: dict[str, Speed] = {}
        """All that it remembers."""

    def observe(self, loads: Iterable[Load], now_s: float) -> None:
        told: dict[str, list[float]] = {}
        for load in loads:
            if load.step_samples >= LEAST_SAMPLES:
                told.setdefault(load.variant, []).append(min(SLOWEST, max(FASTEST, load.step_time_ratio)))
        for name, ratios in told.items():
            speed = self.variants.setdefault(name, Speed(ratio=fmean(ratios), at_s=now_s))
            speed.ratio += (1 - exp((speed.at_s - now_s) / SMOOTHED_S)) * (fmean(ratios) - speed.ratio)
            speed.at_s = now_s

    def ratios(self) -> dict[str, float]:
        return {name: round(speed.ratio / STEP) * STEP for name, speed in self.variants.items()}


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
