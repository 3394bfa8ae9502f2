"""A step's chunks of prompts as flat arrays on the device, in one copy; it runs nothing."""

from __future__ import annotations

from collections.abc import Sequence as Items
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from engine.gpu.decoder import PromptContext
from engine.sequence import ScheduledChunk

Array = TypeVar("Array", np.ndarray, Tensor)


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptLayout:
    """Where T tokens of S chunks lie in one flat array of int32."""

    tokens: int
    sequences: int
    longest: int
    """Tokens that no chunk exceeds."""

    @classmethod
    def of(cls, chunks: Items[ScheduledChunk]) -> PromptLayout:
        counts = [chunk.num_tokens for chunk in chunks]
        return cls(tokens=sum(counts), sequences=len(counts), longest=max(counts))

    @property
    def _lengths(self) -> tuple[int, ...]:
        """Of token ids, positions, slots; rows, query starts, tokens in the cache before the chunk."""
        return (self.tokens, self.tokens, self.tokens, self.sequences, self.sequences + 1, self.sequences)

    @property
    def size(self) -> int:
        return sum(_to_whole_16_bytes(length) for length in self._lengths)

    def views(self, flat: Array) -> list[Array]:
        """The six arrays, each of which begins at whole 16 bytes: Triton compiles a kernel for each combination of
        arguments that do and that do not, half a second each time one is new."""
        found, start = [], 0
        for length in self._lengths:
            found.append(flat[start : start + length])
            start += _to_whole_16_bytes(length)
        return found

    def filled(self, chunks: Items[ScheduledChunk], block_size: int) -> np.ndarray:
        """[size]; past the chunks' tokens there is token 0, which is kept nowhere, past the chunks some without any."""
        flat = np.zeros(self.size, dtype=np.int32)
        token_ids, positions, slots, rows, query_starts, starts = self.views(flat)
        counts = np.array([chunk.num_tokens for chunk in chunks])
        ends = counts.cumsum()
        total, count = int(ends[-1]), len(chunks)
        rows[:count] = [chunk.sequence.slot for chunk in chunks]
        starts[:count] = [chunk.start for chunk in chunks]
        query_starts[1:] = total
        query_starts[1 : count + 1] = ends
        owner = np.repeat(np.arange(count), counts)
        positions[:total] = np.arange(total) + (starts[:count] - query_starts[:count])[owner]
        np.concatenate([chunk.sequence.token_ids[chunk.start : chunk.end] for chunk in chunks], out=token_ids[:total])
        slots[total:] = -1
        np.concatenate([_slots(chunk, block_size) for chunk in chunks], out=slots[:total], casting="unsafe")
        return flat


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptBatch:
    """T tokens of S chunks, one after another."""

    token_ids: Tensor
    """[T] int32"""
    context: PromptContext

    @classmethod
    def of(cls, chunks: Items[ScheduledChunk], block_tables: Tensor, block_size: int) -> PromptBatch:
        """`block_tables` are the device's, of which a chunk's slot is a row."""
        layout = PromptLayout.of(chunks)
        flat = torch.from_numpy(layout.filled(chunks, block_size))
        if block_tables.is_cuda:
            flat = flat.pin_memory().to(block_tables.device, non_blocking=True)
        return cls.within(flat, layout, block_tables)

    @classmethod
    def within(
        cls, flat: Tensor, layout: PromptLayout, block_tables: Tensor, attended: Tensor | None = None
    ) -> PromptBatch:
        """Of an array on the device as `layout` has it; `attended` [T, H, D] is where attention goes."""
        token_ids, positions, slots, rows, query_starts, starts = layout.views(flat)
        return cls(
            token_ids=token_ids,
            context=PromptContext(
                positions=positions,
                slots=slots,
                block_tables=block_tables,
                rows=rows,
                query_starts=query_starts,
                context_lens=starts,
                longest=layout.longest,
                attended=attended,
            ),
        )


def _to_whole_16_bytes(length: int) -> int:
    return -(-length // 4) * 4


def _slots(chunk: ScheduledChunk, block_size: int) -> np.ndarray:
    positions = np.arange(chunk.start, chunk.end)
    table = np.array(chunk.sequence.block_table)
    return table[positions // block_size] * block_size + positions % block_size
