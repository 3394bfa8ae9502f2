"""Sequence: the mutable state of one request inside an engine, shared by scheduler and runner; it schedules nothing."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from cluster.rank import Rank, rank
from cluster.request import GenerationRequest, TokenLogprob


@dataclass(slots=True, kw_only=True, eq=False)
class Sequence:
    """Prompt and output tokens of a request, and how far the KV cache holds them.

    `num_computed_tokens` counts the tokens from position 0 whose K and V lie in the blocks of `block_table`; after a
    preemption it is 0 again and the output so far is prefilled like a prompt.
    """

    request: GenerationRequest
    token_ids: list[int]
    num_prompt_tokens: int
    seed: int
    arrival: int
    """Order of admission, unique in an engine."""
    arrived_s: float = 0.0
    """By the engine's clock."""
    rank: Rank = field(init=False)
    """Smaller runs first and is preempted last."""
    block_table: list[int] = field(default_factory=list)
    num_computed_tokens: int = 0
    num_pending_tokens: int = 0
    """Sampled by a step whose results are not read yet: counted, but their ids are known to the device alone."""
    slot: int = -1
    """Its place among the running, from 0 to max_sequences - 1, kept from admission to the end; a runner may keep state
    of the sequence under it."""
    num_cached_tokens: int = 0
    """Prompt tokens that the prefix cache gave at the first admission."""
    num_preemptions: int = 0
    queued_s: float | None = None
    """From its arrival to the start of the first step that it had a chunk in."""
    first_token_s: float | None = None
    """When its first token was read, by the engine's clock."""
    block_hashes: list[bytes] = field(default_factory=list)
    """Chained hashes of the leading full blocks of `token_ids`, as far as they have been needed."""

    def __post_init__(self) -> None:
        request = self.request
        self.rank = rank(
            priority=request.priority,
            objective=request.objective,
            deadline_s=request.deadline_s,
            arrived_s=self.arrived_s,
            number=self.arrival,
        )

    @property
    def prefill_s(self) -> float | None:
        """From the start of its first step to its first token."""
        if self.first_token_s is None or self.queued_s is None:
            return None
        return self.first_token_s - self.arrived_s - self.queued_s

    @property
    def is_background(self) -> bool:
        return self.rank[0]

    @property
    def num_output_tokens(self) -> int:
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def num_tokens(self) -> int:
        """Prompt and output, the pending ones too."""
        return len(self.token_ids) + self.num_pending_tokens

    @property
    def num_uncomputed_tokens(self) -> int:
        return len(self.token_ids) + self.num_pending_tokens - self.num_computed_tokens

    @property
    def is_full(self) -> bool:
        """Whether its last token is sampled already, though perhaps not read."""
        drawn = len(self.token_ids) + self.num_pending_tokens - self.num_prompt_tokens
        return drawn >= self.request.sampling.max_tokens


class ScheduledChunk(NamedTuple):
    """`num_tokens` tokens of a sequence from position `start` on, as things stood when it was scheduled."""

    sequence: Sequence
    start: int
    num_tokens: int
    samples: bool
    """Whether it reaches the sequence's end, so that a next token is drawn."""
    num_preemptions: int
    """Of the sequence until then: after one more, the chunk's K and V are no longer its own."""

    @classmethod
    def of(cls, sequence: Sequence, num_tokens: int) -> ScheduledChunk:
        reaches_end = num_tokens == sequence.num_uncomputed_tokens
        return cls(sequence, sequence.num_computed_tokens, num_tokens, reaches_end, sequence.num_preemptions)

    @property
    def end(self) -> int:
        return self.start + self.num_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkResult:
    """What the runner made of one chunk; `token_id` is None when the chunk did not reach the sequence's end."""

    token_id: int | None
    logprob: TokenLogprob | None = None
    prompt_logprobs: list[TokenLogprob | None] | None = None
    """Of the prompt positions start+1 .. start+num_tokens that this chunk's rows predict, when asked for."""
    error: str | None = None
    """Why this sequence cannot go on (logits that are not finite); the step's other chunks are good."""
