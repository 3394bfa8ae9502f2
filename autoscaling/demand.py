"""Demand by SLO class: what arrives and what waits, smoothed, with trend and recent peak; it knows no replica."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import exp, sqrt

from autoscaling.bursts import beyond_chance
from autoscaling.scaling import ClassTraffic
from cluster.slo import SloLimits

PRIOR_OUTPUT_TOKENS = 128.0
"""Before any answer has ended."""
PRIOR_ANSWERS = 32
"""So many answers the prior counts for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassDemand:
    """Of one SLO class, counted at arrival: requests that were refused are demand too."""

    slo_class: str
    rate_per_s: float
    prompt_tokens: float
    """Of the mean request."""
    output_tokens: float
    burst: float = 0.0
    """Requests that come within bursts.BURST_S at times; 0 where that is no more than chance brings."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DemandSettings:
    level_s: float = 30.0
    """Time constant of the smoothed rate."""
    trend_s: float = 120.0
    """Time constant of its slope."""
    length_s: float = 600.0
    """Time constant of the mean lengths, which change more slowly and are noisier."""
    noise: float = 1.0
    """Standard deviations of a Poisson count over `level_s` that are added to a forecast."""
    hold_s: float = 180.0
    """A fleet shrinks to what the largest level of so long a time needs."""
    idle_s: float = 300.0
    """Without an arrival for so long a class asks for nothing; until then for one request in so long a time."""
    drain_s: float = 30.0
    """What waits in ingresses is to be served within so long, beside what arrives; within half of a class's deadline
    where that is longer."""


@dataclass(slots=True, kw_only=True)
class ClassSeries:
    """What a forecast remembers of one class, as plain values."""

    level: float | None = None
    """Arrivals a second, smoothed; None before the first window."""
    trend: float = 0.0
    backlog_rate: float = 0.0
    """Requests a second that what waits asks for."""
    peaks: list[tuple[float, float]] = field(default_factory=list)
    """Times, and levels with their backlogs or what was expected then, of the last `hold_s`."""
    bursts: list[tuple[float, int]] = field(default_factory=list)
    """Times and sizes of those beyond chance, of the last `hold_s`."""
    last_seen_s: float | None = None
    """When a request last arrived or waited."""
    asleep: bool = True
    prompt_tokens: float = 0.0
    output_tokens: float = PRIOR_OUTPUT_TOKENS
    num_outputs: int = 0


class DemandForecast:
    """Holt's linear smoothing (1957) of each class's arrival rate, for decisions at uneven times."""

    def __init__(self, settings: DemandSettings, limits: Mapping[str, SloLimits] | None = None) -> None:
        """`limits` of classes, for their deadlines."""
        self.classes: dict[str, ClassSeries] = {}
        """All that it remembers."""
        self._settings = settings
        self._limits = limits or {}

    def observe(self, traffic: Iterable[ClassTraffic], now_s: float) -> None:
        for seen in traffic:
            if seen.window_s > 0:
                series = self.classes.setdefault(seen.slo_class, ClassSeries())
                series.backlog_rate = seen.waiting / self._drain_s(seen.slo_class)
                _observe_rate(series, seen, now_s, self._settings)
                _observe_lengths(series, seen, self._settings)

    def expected(self, horizon_s: float) -> tuple[ClassDemand, ...]:
        """The level, its trend over the horizon where it rises, what a Poisson process adds by chance, what waits."""
        settings, rates = self._settings, {}
        for name, series in self.classes.items():
            rate = (series.level or 0.0) + max(0.0, series.trend) * horizon_s
            forecast = 0.0 if series.asleep else max(rate, 1 / settings.idle_s)
            rates[name] = forecast + settings.noise * sqrt(forecast / settings.level_s) + series.backlog_rate
        return self._demand(rates)

    def remember(self, expected: Iterable[ClassDemand]) -> None:
        """A fleet was planned for this demand: for `hold_s` a smaller one has to hold it, too. Else what a trend or
        chance made it grow by is taken back by the next decision, which sees the level alone."""
        for demand in expected:
            peaks = self.classes[demand.slo_class].peaks
            if peaks:
                at_s, level = peaks[-1]
                peaks[-1] = (at_s, max(level, demand.rate_per_s))

    def held(self) -> tuple[ClassDemand, ...]:
        """The largest level, with what waited, or demand planned for, of the last `hold_s`: what a smaller fleet has to
        hold."""
        least = 1 / self._settings.idle_s
        peaks = {name: max((level for _, level in each.peaks), default=0.0) for name, each in self.classes.items()}
        return self._demand({name: 0.0 if self.classes[name].asleep else max(peaks[name], least) for name in peaks})

    def _drain_s(self, slo_class: str) -> float:
        limits = self._limits.get(slo_class)
        deadline_s = limits.deadline_s if limits is not None else None
        return max(self._settings.drain_s, (deadline_s or 0.0) / 2)

    def _demand(self, rates: Mapping[str, float]) -> tuple[ClassDemand, ...]:
        return tuple(
            ClassDemand(
                slo_class=name,
                rate_per_s=rate,
                prompt_tokens=self.classes[name].prompt_tokens,
                output_tokens=self.classes[name].output_tokens,
                burst=max((burst for _, burst in self.classes[name].bursts), default=0),
            )
            for name, rate in sorted(rates.items())
            if rate > 0
        )


def _observe_rate(series: ClassSeries, seen: ClassTraffic, now_s: float, settings: DemandSettings) -> None:
    rate, window_s, before = seen.arrivals / seen.window_s, seen.window_s, series.level
    if before is None:
        series.level = rate
    else:
        weight = 1 - exp(-window_s / settings.level_s)
        series.level = weight * rate + (1 - weight) * max(0.0, before + series.trend * window_s)
        slope = (series.level - before) / window_s
        series.trend += (1 - exp(-window_s / settings.trend_s)) * (slope - series.trend)
    series.peaks.append((now_s, series.level + series.backlog_rate))
    while series.peaks[0][0] < now_s - settings.hold_s:
        series.peaks.pop(0)
    if beyond_chance(seen.burst, max(series.level, rate)):
        series.bursts.append((now_s, seen.burst))
    while series.bursts and series.bursts[0][0] < now_s - settings.hold_s:
        series.bursts.pop(0)
    if seen.arrivals or seen.waiting:
        series.last_seen_s = now_s
    series.asleep = series.last_seen_s is None or now_s - series.last_seen_s > settings.idle_s


def _observe_lengths(series: ClassSeries, seen: ClassTraffic, settings: DemandSettings) -> None:
    weight = 1 - exp(-seen.window_s / settings.length_s)
    if seen.arrivals:
        mean = seen.prompt_tokens / seen.arrivals
        known = series.prompt_tokens
        series.prompt_tokens = known + weight * (mean - known) if known else mean
    if seen.finished:
        mean = seen.output_tokens / seen.finished
        # The first answers to end are short ones: the prior counts in a mean over all of them.
        series.num_outputs += seen.finished
        weight = max(weight, seen.finished / (PRIOR_ANSWERS + series.num_outputs))
        series.output_tokens += weight * (mean - series.output_tokens)
