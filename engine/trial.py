"""Steps made up to be timed, or to warm a runner up: sequences that no request stands behind; it runs nothing."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import count

from cluster.request import GenerationRequest, SamplingParams
from engine.sequence import ScheduledChunk, Sequence


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """So many decodes at a context, beside a chunk of each of some prompts after a context."""

    decodes: int = 0
    context: int = 0
    chunk: int = 0
    chunk_context: int = 0
    prompts: int = 1

    @property
    def _num_chunks(self) -> int:
        return self.prompts if self.chunk else 0

    @property
    def lengths(self) -> list[int]:
        """Tokens in the cache after the step, by sequence."""
        return [self.context] * self.decodes + [self.chunk_context + self.chunk] * self._num_chunks

    def num_blocks(self, block_size: int) -> int:
        return sum(-(-length // block_size) for length in self.lengths)

    def chunks(self, block_size: int) -> list[ScheduledChunk]:
        """Every sequence in blocks of its own, as an engine without prefix hits has them."""
        blocks = count()
        sizes = [1] * self.decodes + [self.chunk] * self._num_chunks
        return [
            ScheduledChunk.of(
                trial_sequence(
                    num_tokens=length,
                    num_computed_tokens=length - size,
                    block_table=[next(blocks) for _ in range(-(-length // block_size))],
                    slot=slot,
                ),
                size,
            )
            for slot, (length, size) in enumerate(zip(self.lengths, sizes, strict=True))
        ]


def trial_sequence(*, num_tokens: int, num_computed_tokens: int, block_table: list[int], slot: int = 0) -> Sequence:
    """Samples as the OpenAI API has it by default: at temperature 1 over the whole vocabulary."""
    token_ids = [3 + index % 50 for index in range(num_tokens)]
    request = GenerationRequest(request_id="", prompt_token_ids=token_ids, sampling=SamplingParams())
    return Sequence(
        request=request,
        token_ids=token_ids,
        num_prompt_tokens=num_tokens,
        seed=0,
        arrival=0,
        block_table=block_table,
        num_computed_tokens=num_computed_tokens,
        slot=slot,
    )
