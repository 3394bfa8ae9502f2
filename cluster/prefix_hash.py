"""Names of a prompt's beginnings, by which routers know a prefix again; it keeps no token and knows no replica."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

PREFIX_BLOCK_TOKENS = 64
"""Behind one hash: four KV blocks of 16. At 1,000 tokens 15 hashes take some 20 us; one for each KV block, 50."""


def prefix_hashes(token_ids: Sequence[int]) -> tuple[int, ...]:
    """Of the first 64 tokens, the first 128, and so on: each stands for all tokens before its end.

    64 bits of SipHash under the process's own key: equal only in this process, which is the one that compares them. A
    collision would cost a request the better replica, never its answer.
    """
    try:
        data = array("I", token_ids).tobytes()
    except OverflowError:
        raise ValueError("a token id is negative, or wider than 32 bits") from None
    width = PREFIX_BLOCK_TOKENS * array("I").itemsize
    hashes: list[int] = []
    previous = 0
    for end in range(width, len(data) + 1, width):
        previous = hash((previous, data[end - width : end]))
        hashes.append(previous)
    return tuple(hashes)
