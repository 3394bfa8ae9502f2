"""A rate that forgets: events a second over the last few seconds; what the events are it does not know."""

from __future__ import annotations

from math import exp


class DecayingRate:
    """Exponentially weighted events per second of wall time; right from the first second on, falling when none come."""

    def __init__(self, window_s: float = 5.0) -> None:
        self._window_s = window_s
        self._sum = 0.0
        self._first_s: float | None = None
        self._last_s = 0.0

    def record(self, amount: float, now_s: float) -> None:
        if self._first_s is None:
            self._first_s = self._last_s = now_s
        self._sum = self._decayed(now_s) + amount
        self._last_s = now_s

    def per_second(self, now_s: float) -> float:
        """Before a window has passed the weights sum to less than it, so the sum is divided by what they do sum to."""
        if self._first_s is None or now_s <= self._first_s:
            return 0.0
        weight_s = self._window_s * (1.0 - exp((self._first_s - now_s) / self._window_s))
        return self._decayed(now_s) / weight_s

    def _decayed(self, now_s: float) -> float:
        return self._sum * exp((self._last_s - now_s) / self._window_s)


class SmoothedRatio:
    """Exponential mean of measured / predicted; 1 until something was measured."""

    def __init__(self, weight: float = 0.1) -> None:
        self._weight = weight
        self.value = 1.0
        self.num_samples = 0

    def record(self, measured: float, predicted: float) -> None:
        ratio = measured / predicted
        # The first samples count as in a plain mean: one odd step at the start must not colour the next twenty.
        weight = max(self._weight, 1.0 / (self.num_samples + 1))
        self.value += weight * (ratio - self.value)
        self.num_samples += 1
