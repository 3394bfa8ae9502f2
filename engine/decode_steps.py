"""Steps of one token a sequence, which are most steps: the model's work recorded once per batch size, then replayed.

On a CPU the Python between kernels takes 3 to 6 ms of a step, a third of it at batch 1. (A GPU has CUDA graphs.)
"""

from __future__ import annotations

import logging

import torch
from torch import Tensor

from engine.model import Decoder
from engine.token_batch import TokenBatch
from kernels.cpu.recording import Arena, NotRecordableError, Recording
from kernels.kv_layout import LayerCache

log = logging.getLogger(__name__)

# Address space, not memory: a step of 64 tokens of the 135M model touches 15 MB of it, an 8B model's 60 MB.
ARENA_BYTES = 512 << 20


class DecodeSteps:
    """Hidden states and logits of such steps; a recording holds addresses, so inputs lie in buffers of its own."""

    def __init__(
        self, decoder: Decoder, kv_cache: list[LayerCache], *, hidden_size: int, max_tokens: int, max_blocks: int
    ) -> None:
        self._decoder, self._kv_cache = decoder, kv_cache
        self._arena = Arena(ARENA_BYTES)
        self._residual = torch.zeros(max_tokens, hidden_size)
        self._inputs = TokenBatch(
            token_ids=torch.zeros(max_tokens, dtype=torch.int64),
            positions=torch.zeros(max_tokens, dtype=torch.int64),
            positions_int32=torch.zeros(max_tokens, dtype=torch.int32),
            slots=torch.zeros(max_tokens, dtype=torch.int64),
            sequence_of_token=torch.zeros(max_tokens, dtype=torch.int32),
            block_tables=torch.zeros(max_tokens, max_blocks, dtype=torch.int32),
        )
        self._recordings: dict[int, Recording] = {}
        self._seen: set[int] = set()
        self._recordable = True

    def run(self, batch: TokenBatch) -> tuple[Tensor, Tensor]:
        """[T, hidden] and [T, vocab], good until the next call."""
        num_tokens = len(batch.token_ids)
        recording = self._recordings.get(num_tokens)
        if recording is None or recording.is_stale:
            return self._first_steps(batch, num_tokens)
        self._fill(batch, num_tokens)
        recording.replay()
        hidden, logits = recording.outputs
        return hidden, logits

    def _first_steps(self, batch: TokenBatch, num_tokens: int) -> tuple[Tensor, Tensor]:
        """The first step of a size is a plain one: it brings the kernels' scratch memory to its final size."""
        if self._recordable and num_tokens in self._seen:
            self._fill(batch, num_tokens)
            inputs, residual = self._inputs.first(num_tokens), self._residual[:num_tokens]
            try:
                recording = Recording(lambda: self._compute(residual, inputs), self._arena)
            except NotRecordableError as error:
                log.warning(
                    "decode steps of this model are not recorded, which costs some milliseconds each: %s", error
                )
                self._recordable = False
            else:
                self._recordings[num_tokens] = recording
                hidden, logits = recording.outputs
                return hidden, logits
        self._seen.add(num_tokens)
        return self._compute(self._decoder.embed(batch.token_ids), batch)

    def _compute(self, residual: Tensor, batch: TokenBatch) -> tuple[Tensor, Tensor]:
        hidden = self._decoder.hidden_states(residual, batch, self._kv_cache)
        return hidden, self._decoder.logits(hidden)

    def _fill(self, batch: TokenBatch, num_tokens: int) -> None:
        inputs = self._inputs
        self._residual[:num_tokens] = self._decoder.embed(batch.token_ids)
        inputs.positions[:num_tokens] = batch.positions
        inputs.positions_int32[:num_tokens] = batch.positions_int32
        inputs.slots[:num_tokens] = batch.slots
        inputs.sequence_of_token[:num_tokens] = batch.sequence_of_token
        inputs.block_tables[:num_tokens, : batch.block_tables.shape[1]] = batch.block_tables
