"""OutputLengths: how long the answers of a class really are, from those that ended; it knows no request."""

from __future__ import annotations

from bisect import bisect_right, insort
from collections import deque
from math import ceil

PRIOR_TOKENS = 256
"""Before any answer has ended; WildChat's mean answer has some 250 tokens."""
PRIOR_ANSWERS = 8
"""The prior counts as so many: the first answers to end are the short ones."""
WINDOW = 512
"""Answers a class is judged by; older ones are forgotten."""


class OutputLengths:
    """Running mean and quantiles of each class's answers, in tokens of one sequence."""

    def __init__(self, window: int = WINDOW) -> None:
        self._window = window
        self._classes: dict[str, _Lengths] = {}

    def ended(self, slo_class: str, output_tokens: int) -> None:
        """An answer that nothing but its own end has ended: one cut at max_tokens tells nothing."""
        self._classes.setdefault(slo_class, _Lengths(self._window)).add(output_tokens)

    def expected(self, slo_class: str, *, generated: int = 0) -> int:
        """The mean of the answers longer than what was generated already, and so at least one token more than that."""
        lengths = self._classes.get(slo_class)
        mean = PRIOR_TOKENS if lengths is None else lengths.mean_beyond(generated)
        return max(generated + 1, round(mean))

    def quantile(self, slo_class: str, share: float) -> int | None:
        """The length that `share` of the answers do not pass; None before one has ended."""
        lengths = self._classes.get(slo_class)
        return None if lengths is None else lengths.quantile(share)


class _Lengths:
    def __init__(self, window: int) -> None:
        self._recent: deque[int] = deque(maxlen=window)
        self._ordered: list[int] = []
        self._sum = 0

    def add(self, tokens: int) -> None:
        if len(self._recent) == self._recent.maxlen:
            oldest = self._recent[0]
            del self._ordered[bisect_right(self._ordered, oldest) - 1]
            self._sum -= oldest
        self._recent.append(tokens)
        insort(self._ordered, tokens)
        self._sum += tokens

    def mean_beyond(self, generated: int) -> float:
        longer, total = len(self._ordered), self._sum
        if generated > 0:
            first = bisect_right(self._ordered, generated)
            longer, total = longer - first, sum(self._ordered[first:])
        prior = max(PRIOR_TOKENS, generated + 1)
        return (total + PRIOR_ANSWERS * prior) / (longer + PRIOR_ANSWERS)

    def quantile(self, share: float) -> int:
        return self._ordered[max(0, ceil(share * len(self._ordered)) - 1)]
