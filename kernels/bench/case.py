"""One line of the kernels' benchmark: an operation on a shape, its bytes and flops, its peer; it times nothing."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

Call = Callable[[], object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """`calls` are the same work on different copies of the data, so that a pass over all of them outgrows the L2."""

    operation: str
    shape: str
    calls: Sequence[Call]
    bytes: int
    """The least one call must move through the card's memory: every input once, every output once."""
    flops: int = 0
    flops_dtype: Literal["bf16", "fp8", "int8"] = "bf16"
    peer: str = ""
    peer_calls: Sequence[Call] = ()
    """What the ratio is taken to; the same work by the library one would use instead."""
