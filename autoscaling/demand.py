"""Demand by SLO class: what arrives, smoothed, with its trend and its recent peak; it knows no replica."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import exp, sqrt

from autoscaling.scaling import ClassTraffic

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


class DemandForecast:
    """Holt's linear smoothing (1957) of each class's arrival rate, for decisions at uneven times."""

    def __init__(self, settings: DemandSettings) -> None:
        self._settings = settings
        self._classes: dict[str, _ClassSeries] = {}

    def observe(self, traffic: Iterable[ClassTraffic], now_s: float) -> None:
        for seen in traffic:
            if seen.window_s > 0:
                series = self._classes.setdefault(seen.slo_class, _ClassSeries(self._settings))
                series.observe(seen, now_s)

    def expected(self, horizon_s: float) -> tuple[ClassDemand, ...]:
        """The level, its trend over the horizon where it rises, and what a Poisson process adds by chance."""
        return self._demand({name: series.expected(horizon_s) for name, series in self._classes.items()})

    def held(self) -> tuple[ClassDemand, ...]:
        """The largest level of the last `hold_s`: what a smaller fleet has to hold."""
        return self._demand({name: series.peak for name, series in self._classes.items()})

    def _demand(self, rates: Mapping[str, float]) -> tuple[ClassDemand, ...]:
        return tuple(
            ClassDemand(
                slo_class=name,
                rate_per_s=rate,
                prompt_tokens=self._classes[name].prompt_tokens,
                output_tokens=self._classes[name].output_tokens,
            )
            for name, rate in sorted(rates.items())
            if rate > 0
        )


class _ClassSeries:
    def __init__(self, settings: DemandSettings) -> None:
        self._settings = settings
        self._level = self._trend = 0.0
        self._levels: deque[tuple[float, float]] = deque()
        self._last_arrival_s: float | None = None
        self._started = False
        self._asleep = True
        self.prompt_tokens = 0.0
        self.output_tokens = PRIOR_OUTPUT_TOKENS
        self._num_outputs = 0

    def observe(self, seen: ClassTraffic, now_s: float) -> None:
        settings, window_s = self._settings, seen.window_s
        rate = seen.arrivals / window_s
        if not self._started:
            self._level, self._started = rate, True
        else:
            before = self._level
            weight = 1 - exp(-window_s / settings.level_s)
            self._level = weight * rate + (1 - weight) * max(0.0, before + self._trend * window_s)
            slope = (self._level - before) / window_s
            self._trend += (1 - exp(-window_s / settings.trend_s)) * (slope - self._trend)
        self._levels.append((now_s, self._level))
        while self._levels[0][0] < now_s - settings.hold_s:
            self._levels.popleft()
        if seen.arrivals:
            self._last_arrival_s = now_s
        self._asleep = self._last_arrival_s is None or now_s - self._last_arrival_s > settings.idle_s
        self._observe_lengths(seen)

    def expected(self, horizon_s: float) -> float:
        forecast = self._awake(self._level + max(0.0, self._trend) * horizon_s)
        return forecast + self._settings.noise * sqrt(forecast / self._settings.level_s)

    @property
    def peak(self) -> float:
        return self._awake(max((level for _, level in self._levels), default=0.0))

    def _awake(self, rate: float) -> float:
        return 0.0 if self._asleep else max(rate, 1 / self._settings.idle_s)

    def _observe_lengths(self, seen: ClassTraffic) -> None:
        weight = 1 - exp(-seen.window_s / self._settings.length_s)
        if seen.arrivals:
            mean = seen.prompt_tokens / seen.arrivals
            self.prompt_tokens = (
                mean if not self.prompt_tokens else self.prompt_tokens + weight * (mean - self.prompt_tokens)
            )
        if seen.finished:
            mean = seen.output_tokens / seen.finished
            # The first answers to end are short ones: the prior counts in a mean over all of them.
            self._num_outputs += seen.finished
            weight = max(weight, seen.finished / (PRIOR_ANSWERS + self._num_outputs))
            self.output_tokens += weight * (mean - self.output_tokens)
