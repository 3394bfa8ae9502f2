"""RecentRate: tokens a second over the last seconds, as an engine tells it in its Load; it knows no request."""

from __future__ import annotations

from math import exp

WINDOW_S = 5.0
"""engine.rates.DecayingRate's."""


class RecentRate:
    """Exponentially weighted; `spread` stands for many records of equal amounts at equal distances."""

    def __init__(self) -> None:
        self._sum = 0.0
        self._first_s: float | None = None
        self._last_s = 0.0

    def record(self, amount: float, now_s: float) -> None:
        if self._first_s is None:
            self._first_s = self._last_s = now_s
        if amount:
            self._sum = self._decayed(now_s) + amount
            self._last_s = now_s

    def spread(self, amount: float, start_s: float, end_s: float) -> None:
        if self._first_s is None:
            self._first_s = start_s
        if amount:
            self._sum = self._decayed(end_s) + amount * _kept(end_s - start_s)
            self._last_s = end_s

    def per_second(self, now_s: float, *, under_way: float = 0.0, since_s: float = 0.0) -> float:
        """With what is spread from `since_s` until now and not recorded yet."""
        first_s = since_s if self._first_s is None and under_way else self._first_s
        if first_s is None or now_s <= first_s:
            return 0.0
        recent = self._decayed(now_s) + (under_way * _kept(now_s - since_s) if under_way else 0.0)
        return recent / (WINDOW_S * (1 - exp((first_s - now_s) / WINDOW_S)))

    def _decayed(self, now_s: float) -> float:
        return self._sum * exp((self._last_s - now_s) / WINDOW_S) if self._sum else 0.0


def _kept(lasted_s: float) -> float:
    """Of an amount spread evenly over the last seconds."""
    return (1 - exp(-lasted_s / WINDOW_S)) * WINDOW_S / lasted_s if lasted_s > 0 else 1.0
