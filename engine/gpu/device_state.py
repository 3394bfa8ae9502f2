"""What a GPU keeps of the running sequences between steps, by slot, and how a step is told of changes; no model.

A decode step needs nothing from the host but the slots in its batch and the blocks that were added: last token, length,
block table and sampling parameters lie here, and each step leaves them as the next one needs them. So a step can be
launched before the host has read what the last one drew.
"""

from __future__ import annotations

from collections.abc import Sequence as Items
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from engine.sequence import ScheduledChunk, Sequence
from kernels.gpu.decode_inputs import prepare_decode
from kernels.gpu.sampling import DeviceSampling

SEED_MASK = 2**63 - 1
FLOATS = 3
"""temperature, top_p, min_p"""
INTEGERS = 2
"""seed, top_k"""


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeBatch:
    """The inputs of a decode step of B rows, in buffers of their own: a CUDA graph holds their addresses."""

    token_ids: Tensor
    """[B] int64"""
    seq_lens: Tensor
    """[B] int32, the new token counted; 0 for a row that only fills up the graph's batch"""
    rows: Tensor
    """[B] int32: slots"""
    sampling: DeviceSampling

    def first(self, num_rows: int) -> DecodeBatch:
        return DecodeBatch(
            token_ids=self.token_ids[:num_rows],
            seq_lens=self.seq_lens[:num_rows],
            rows=self.rows[:num_rows],
            sampling=DeviceSampling(
                temperature=self.sampling.temperature[:num_rows],
                top_k=self.sampling.top_k[:num_rows],
                top_p=self.sampling.top_p[:num_rows],
                min_p=self.sampling.min_p[:num_rows],
                seed=self.sampling.seed[:num_rows],
                position=self.sampling.position[:num_rows],
            ),
        )


class DeviceState:
    """Arrays over max_sequences slots and one more, which the rows that fill up a batch point to."""

    def __init__(self, *, max_sequences: int, max_context: int, block_size: int, device: str) -> None:
        self.max_sequences, self.block_size, self.device = max_sequences, block_size, device
        self.pad_slot = max_sequences
        self.max_blocks = -(-max_context // block_size)
        slots = max_sequences + 1

        def zeros(*shape: int, dtype: torch.dtype = torch.int32) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        self.last_token = zeros(slots, dtype=torch.int64)
        self.lengths = zeros(slots)
        """Tokens whose K and V are in the cache: the next one's position."""
        self.block_tables = zeros(slots, self.max_blocks)
        self.history = zeros(slots, max_context)
        """All tokens up to `lengths`, for penalties."""
        self.floats = zeros(slots, FLOATS, dtype=torch.float32)
        self.integers = zeros(slots, INTEGERS, dtype=torch.int64)
        self.staging = zeros(2, max_sequences)
        """Rows of the next decode step, and the block each of them was given (-1: none)."""
        self.batch = DecodeBatch(
            token_ids=zeros(max_sequences, dtype=torch.int64),
            seq_lens=zeros(max_sequences),
            rows=self.staging[0],
            sampling=DeviceSampling(
                temperature=zeros(max_sequences, dtype=torch.float32),
                top_k=zeros(max_sequences),
                top_p=zeros(max_sequences, dtype=torch.float32),
                min_p=zeros(max_sequences, dtype=torch.float32),
                seed=zeros(max_sequences, dtype=torch.int64),
                position=zeros(max_sequences),
            ),
        )
        self._known: list[tuple[Sequence, int] | None] = [None] * slots
        """Whose state lies in each slot, and after how many preemptions."""
        self._num_blocks = [0] * slots
        self._drawn_at = [-1] * slots
        """The position of the token in `last_token`, where it was drawn here."""

    def has_last_token_of(self, chunk: ScheduledChunk) -> bool:
        """Whether the chunk is a decode: its one token was drawn here, and all before it are in the cache."""
        slot = chunk.sequence.slot
        known = self._known[slot]
        return (
            chunk.num_tokens == 1
            and known is not None
            and known[0] is chunk.sequence
            and known[1] == chunk.num_preemptions
            and self._drawn_at[slot] == chunk.start
        )

    def stage_decodes(self, chunks: Items[ScheduledChunk], num_rows: int, staging: np.ndarray) -> None:
        """Fills [2, max_sequences] int32 on the host for a batch of `num_rows`; the caller copies it to `staging`."""
        staging[0, :num_rows] = self.pad_slot
        staging[1, :num_rows] = -1
        for row, chunk in enumerate(chunks):
            sequence, slot = chunk.sequence, chunk.sequence.slot
            staging[0, row] = slot
            num_blocks = len(sequence.block_table)
            if num_blocks > self._num_blocks[slot]:
                assert num_blocks == self._num_blocks[slot] + 1, "a decode takes one block at most"
                staging[1, row] = sequence.block_table[-1]
                self._num_blocks[slot] = num_blocks
            self._drawn_at[slot] = chunk.end

    def prepare(self, num_rows: int) -> DecodeBatch:
        """Launches what turns `staging` into a batch; part of the graph."""
        batch = self.batch
        prepare_decode(
            self.staging,
            last_token=self.last_token,
            lengths=self.lengths,
            block_tables=self.block_tables,
            history=self.history,
            floats=self.floats,
            integers=self.integers,
            token_ids=batch.token_ids,
            seq_lens=batch.seq_lens,
            sampling=batch.sampling,
            num_rows=num_rows,
            block_size=self.block_size,
        )
        return batch.first(num_rows)

    def keep(self, slots: Tensor, token_ids: Tensor) -> None:
        """The drawn tokens [B] of some slots [B] become the next step's."""
        self.last_token.index_copy_(0, slots.long(), token_ids)

    def enter(self, chunks: Items[ScheduledChunk]) -> None:
        """Tells the device of chunks that are not decodes: block tables, lengths and parameters, in three copies."""
        slots = np.array([chunk.sequence.slot for chunk in chunks], dtype=np.int64)
        entries, blocks, tokens, places = [], [], [], []
        for chunk in chunks:
            sequence, slot = chunk.sequence, chunk.sequence.slot
            table = sequence.block_table
            is_known = self._known[slot] == (sequence, chunk.num_preemptions)
            first = self._num_blocks[slot] if is_known else 0
            entries.append(np.arange(first, len(table)) + slot * self.max_blocks)
            blocks.append(np.array(table[first:], dtype=np.int32))
            begin = chunk.start if is_known else 0
            tokens.append(np.array(sequence.token_ids[begin : chunk.end], dtype=np.int32))
            places.append(np.arange(begin, chunk.end) + slot * self.history.shape[1])
            self._known[slot] = (sequence, chunk.num_preemptions)
            self._num_blocks[slot] = len(table)
            # The last token of a prompt that came alone is not drawn here, however well its place fits.
            self._drawn_at[slot] = chunk.end if chunk.samples else -1
        self._scatter(self.block_tables, entries, blocks)
        self._scatter(self.history, places, tokens)
        params = [chunk.sequence.request.sampling for chunk in chunks]
        where = self._upload(slots)
        self.floats.index_copy_(
            0, where, self._upload(np.array([(p.temperature, p.top_p, p.min_p) for p in params], np.float32))
        )
        seeds = [(chunk.sequence.seed & SEED_MASK, p.top_k) for chunk, p in zip(chunks, params, strict=True)]
        self.integers.index_copy_(0, where, self._upload(np.array(seeds, np.int64)))
        ends = np.array([chunk.end for chunk in chunks], dtype=np.int32)
        self.lengths.index_copy_(0, where, self._upload(ends))

    def sampling_of(self, slots: Tensor) -> DeviceSampling:
        """Of some slots [R] int64, whose next token goes to position `lengths`."""
        floats, integers = self.floats[slots], self.integers[slots]
        return DeviceSampling(
            temperature=floats[:, 0].contiguous(),
            top_p=floats[:, 1].contiguous(),
            min_p=floats[:, 2].contiguous(),
            seed=integers[:, 0].contiguous(),
            top_k=integers[:, 1].int(),
            position=self.lengths[slots],
        )

    def _scatter(self, target: Tensor, places: list[np.ndarray], values: list[np.ndarray]) -> None:
        flat = np.concatenate(places)
        if len(flat):
            target.view(-1).index_copy_(0, self._upload(flat.astype(np.int64)), self._upload(np.concatenate(values)))

    def _upload(self, values: np.ndarray) -> Tensor:
        tensor = torch.from_numpy(values)
        return tensor.pin_memory().to(self.device, non_blocking=True) if self.device != "cpu" else tensor
