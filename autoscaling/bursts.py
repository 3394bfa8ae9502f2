"""BurstMeter: the most requests that arrived within half a second, of late; it knows no class and reads no clock."""

from __future__ import annotations

from collections import deque
from math import sqrt

BURST_S = 0.5
"""As long as an interactive TTFT limit: what comes faster than it is served has to be served within that after it."""
KEPT_S = 20.0
"""A burst is told for so long, so that a decision each 10 s sees it though reports come late."""
DEVIATIONS, LEAST = 4.0, 2
"""Beyond the mean of half a second: from 0.1 requests a second to 1,000, Poisson arrivals pass that in fewer than 1 of
10,000 half seconds, and the queue's own formula (autoscaling/sustained.py) counts with as much as they do."""


class BurstMeter:
    def __init__(self) -> None:
        self._recent: deque[float] = deque()
        self._most: deque[tuple[float, int]] = deque()
        """Times and counts, of which the earlier are larger: the first is the largest that is not forgotten."""

    def arrived(self, now_s: float) -> None:
        self._recent.append(now_s)
        while self._recent[0] <= now_s - BURST_S:
            self._recent.popleft()
        count = len(self._recent)
        while self._most and self._most[-1][1] <= count:
            self._most.pop()
        self._most.append((now_s, count))

    def most(self, now_s: float) -> int:
        """In any BURST_S that ended within the last KEPT_S."""
        while self._most and self._most[0][0] < now_s - KEPT_S:
            self._most.popleft()
        return self._most[0][1] if self._most else 0


def beyond_chance(burst: int, rate_per_s: float) -> bool:
    """More than arrivals at random bring at that rate."""
    mean = rate_per_s * BURST_S
    return burst > mean + DEVIATIONS * sqrt(mean) + LEAST
