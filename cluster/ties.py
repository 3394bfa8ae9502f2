"""Picks one of several with the least score, at random among those as good; it knows no replica."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import TypeVar

Item = TypeVar("Item")

TIE = 1.01
"""Scores this close are equal: predictions are not exact to 1 %, and routers that break ties alike make a herd."""


class Ties:
    def __init__(self, rng: random.Random) -> None:
        self.rng = rng

    def pick(self, items: Sequence[Item], scores: Sequence[float]) -> Item:
        tied = min(scores) * TIE
        least = [item for item, score in zip(items, scores, strict=True) if score <= tied]
        return least[0] if len(least) == 1 else self.rng.choice(least)

    def pick_by(self, items: Sequence[Item], score: Callable[[Item], float]) -> Item:
        return self.pick(items, [score(item) for item in items])
