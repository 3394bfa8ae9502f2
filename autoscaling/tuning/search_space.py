"""The settings of the planner that are searched, and between which bounds; it tries none."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import floor, log10

from cluster.config import AutoscalingSection

Settings = Mapping[str, float]
"""By key of the section `autoscaling`."""
DECIMALS = 3
"""Of a fraction, and significant digits of a time: finer differences are noise of the trace."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Range:
    low: float
    high: float
    is_time: bool
    """Seconds, searched by their logarithm: from 30 s to 60 s is as far as from 5 min to 10."""

    def rounded(self, value: float) -> float:
        """As a person would write it, still between the bounds."""
        decimals = DECIMALS - 1 - floor(log10(value)) if self.is_time else DECIMALS
        return min(self.high, max(self.low, round(value, decimals)))


RANGES: Mapping[str, Range] = {
    "headroom": Range(low=0.0, high=0.6, is_time=False),
    # Without any a fleet of N and one of N - 1 would take turns.
    "hysteresis": Range(low=0.02, high=0.4, is_time=False),
    "swap_gain": Range(low=0.0, high=0.5, is_time=False),
    # Replicas tell their loads once a second; a minute is longer than most cold starts.
    "interval_s": Range(low=2.0, high=60.0, is_time=True),
    "level_s": Range(low=5.0, high=300.0, is_time=True),
    "trend_s": Range(low=15.0, high=1200.0, is_time=True),
    "hold_s": Range(low=15.0, high=1800.0, is_time=True),
    "idle_s": Range(low=30.0, high=3600.0, is_time=True),
}


def settings_of(section: AutoscalingSection) -> Settings:
    return {key: float(getattr(section, key)) for key in RANGES}


def with_settings(section: AutoscalingSection, settings: Settings) -> AutoscalingSection:
    return section.model_copy(update=dict(settings))


def ranges_around(settings: Settings) -> Mapping[str, Range]:
    """RANGES, as much wider as these need."""
    return {
        key: replace(each, low=min(each.low, settings[key]), high=max(each.high, settings[key]))
        for key, each in RANGES.items()
    }


def differing(settings: Settings, default: Settings) -> Settings:
    return {key: value for key, value in settings.items() if value != default[key]}
