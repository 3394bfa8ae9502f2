"""PrefixAffinity: of the replicas that a request may go to, one that holds its prefix; it weighs no limit itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cluster.prediction_kernel import Floats
from cluster.prefix_index import PrefixIndex


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    place: int
    prefix_tokens: int
    """Of the prompt's, that it was sent before."""


class PrefixAffinity:
    def __init__(self, block_tokens: int) -> None:
        """`block_tokens` behind one hash of a prefix."""
        self._block_tokens = block_tokens
        self._index = PrefixIndex()

    def dispatched(self, replica_id: str, prefix: Sequence[int], kv_capacity_tokens: int) -> None:
        self._index.dispatched(replica_id, prefix, kv_capacity_tokens // self._block_tokens)

    def forget(self, replica_id: str) -> None:
        self._index.forget(replica_id)

    def lengths(self, prefix: Sequence[int]) -> dict[str, int]:
        """By replica, hashes of the prefix that it holds."""
        return self._index.lengths(prefix) if prefix else {}

    def holder(
        self,
        lengths: dict[str, int],
        places: dict[str, int],
        among: NDArray[np.bool_],
        scores: Floats,
    ) -> Holder | None:
        """The longest prefix wins, of equal ones the least score; None where none of `among` holds any.

        `places` of replicas by id, in the order of `among` and `scores`.
        """
        best: tuple[int, float] | None = None
        place_of_best = -1
        for replica_id, length in lengths.items():
            if best is not None and length < best[0]:
                break
            place = places.get(replica_id)
            if place is not None and among[place]:
                found = (length, -float(scores[place]))
                if best is None or found > best:
                    best, place_of_best = found, place
        if best is None:
            return None
        return Holder(place=place_of_best, prefix_tokens=best[0] * self._block_tokens)
