"""SimulatedSequence: one request inside a simulated replica, in counts of tokens; it schedules nothing."""

from __future__ import annotations

from dataclasses import dataclass, field

from autoscaling.simulator.arrivals import PREFIX_BLOCK_TOKENS
from cluster.rank import Rank


@dataclass(slots=True, kw_only=True, eq=False)
class SimulatedSequence:
    """While it decodes, `num_tokens` is as of the step `joined_step`: each step since has added one."""

    request_id: str
    rank: Rank
    """Smaller runs first and is preempted last."""
    num_tokens: int
    """Prompt and output so far."""
    end_tokens: int
    """Prompt and all output."""
    needed_tokens: int
    """Prompt and max_tokens: what it has promised to stay within."""
    is_throughput: bool = False
    """Of a throughput objective."""
    shared_blocks: tuple[int, ...] = ()
    """Names of the full blocks of its prompt that other prompts may share."""
    holds_shared: list[bool] = field(default_factory=list)
    """For each of them: whether its own block is the one that is known by that name."""
    num_computed_tokens: int = 0
    num_blocks: int = 0
    """While it is prefilled; of a decoding one they follow from its tokens."""
    joined_step: int = -1
    """Since when it decodes; -1: it does not."""
    num_preemptions: int = 0
    has_output: bool = False

    @property
    def num_uncomputed_tokens(self) -> int:
        return self.num_tokens - self.num_computed_tokens


def shared_blocks(prefix: tuple[int, ...], prompt_tokens: int, block_size: int) -> tuple[int, ...]:
    """The engine's blocks behind a trace's ids, each of which stands for PREFIX_BLOCK_TOKENS."""
    each = max(1, PREFIX_BLOCK_TOKENS // block_size)
    full = min(prompt_tokens // block_size, each * len(prefix))
    return tuple(prefix[index // each] * each + index % each for index in range(full))
