"""A runner whose next token is a hash of the whole prefix as read through the block table; it is no language model.

One wrong block, slot or position changes every token after it, so equal output proves the bookkeeping of the paged
cache at a thousandth of a real model's time.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Tokens
from hashlib import blake2b

from cluster.request import TokenLogprob
from engine.sequence import ChunkResult, ScheduledChunk

VOCAB_SIZE = 997
EOS = 0


def next_token(prefix: Tokens[int]) -> int:
    """Never EOS, so that lengths are what max_tokens says; tests of EOS declare another token to be it."""
    digest = blake2b(repr(list(prefix)).encode(), digest_size=8).digest()
    return 1 + int.from_bytes(digest, "big") % (VOCAB_SIZE - 1)


def continuation(prompt: Tokens[int], num_tokens: int) -> list[int]:
    """What the runner must generate, worked out without a cache."""
    token_ids = list(prompt)
    for _ in range(num_tokens):
        token_ids.append(next_token(token_ids))
    return token_ids[len(prompt) :]


class PagedHashRunner:
    def __init__(
        self, num_blocks: int, block_size: int, *, eos: int = EOS, poison: int | None = None, lookahead: int = 0
    ) -> None:
        self.num_blocks = num_blocks
        self.vocab_size = VOCAB_SIZE
        self.eos_token_ids = frozenset({eos})
        self.weight_bytes = 0
        self.kv_bytes = 0
        self.steps: list[list[int]] = []
        """Tokens of each chunk of each step."""
        self.lookahead = lookahead
        self._last_token: dict[int, int] = {}
        """What a device keeps of each slot: the next step may be launched before the host has read it."""
        self._block_size = block_size
        self._poison = poison
        self._slots: list[tuple[int, int] | None] = [None] * (num_blocks * block_size)

    def assume(self, chunks: list[ScheduledChunk]) -> None:
        pass

    def launch(self, chunks: list[ScheduledChunk]) -> Callable[[], list[ChunkResult]]:
        results = self.run(chunks)
        return lambda: results

    def run(self, chunks: list[ScheduledChunk]) -> list[ChunkResult]:
        self.steps.append([chunk.num_tokens for chunk in chunks])
        return [self._run_chunk(chunk) for chunk in chunks]

    def _run_chunk(self, chunk: ScheduledChunk) -> ChunkResult:
        sequence = chunk.sequence
        start, end = chunk.start, chunk.end
        written = sequence.token_ids[start:end]
        if len(written) < chunk.num_tokens:
            written = [*written, self._last_token[sequence.slot]]
        if self._poison in written:
            raise ArithmeticError("poison")
        for position, token_id in enumerate(written, start):
            self._slots[self._slot(sequence.block_table, position)] = (position, token_id)
        prefix = self._read(sequence.block_table, end)
        token_id = next_token(prefix) if chunk.samples else None
        if token_id is not None:
            self._last_token[sequence.slot] = token_id
        prompt_logprobs = None
        if sequence.request.sampling.prompt_logprobs is not None:
            last = min(end, sequence.num_prompt_tokens - 1)
            prompt_logprobs = [
                TokenLogprob(token_id=sequence.token_ids[position], logprob=-float(position))
                for position in range(start + 1, last + 1)
            ]
        return ChunkResult(token_id=token_id, prompt_logprobs=prompt_logprobs)

    def _slot(self, block_table: list[int], position: int) -> int:
        return block_table[position // self._block_size] * self._block_size + position % self._block_size

    def _read(self, block_table: list[int], num_tokens: int) -> list[int]:
        prefix = []
        for position in range(num_tokens):
            entry = self._slots[self._slot(block_table, position)]
            assert entry is not None, f"position {position} was never written"
            assert entry[0] == position, f"position {position} holds what was written for {entry[0]}"
            prefix.append(entry[1])
        return prefix
