"""A step's chunks of prompts as flat arrays on the device, in one copy; it runs nothing."""

from __future__ import annotations

from collections.abc import Sequence as Items
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from engine.gpu.decoder import PromptContext
from engine.sequence import ScheduledChunk


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptBatch:
    """T tokens of S chunks, one after another."""

    token_ids: Tensor
    """[T] int32"""
    context: PromptContext

    @classmethod
    def of(cls, chunks: Items[ScheduledChunk], block_tables: Tensor, block_size: int) -> PromptBatch:
        """`block_tables` are the device's, of which a chunk's slot is a row."""
        counts = np.array([chunk.num_tokens for chunk in chunks], dtype=np.int32)
        starts = np.array([chunk.start for chunk in chunks], dtype=np.int32)
        query_starts = np.concatenate([[0], counts.cumsum()]).astype(np.int32)
        owner = np.repeat(np.arange(len(chunks)), counts)
        positions = np.arange(len(owner), dtype=np.int32) + (starts - query_starts[:-1])[owner]
        tokens = np.concatenate([chunk.sequence.token_ids[chunk.start : chunk.end] for chunk in chunks])
        slots = np.concatenate([_slots(chunk, block_size) for chunk in chunks])
        rows = np.array([chunk.sequence.slot for chunk in chunks])
        parts = [tokens, positions, slots, rows, query_starts, starts]
        flat = torch.from_numpy(np.concatenate([_padded(part) for part in parts]).astype(np.int32))
        if block_tables.is_cuda:
            flat = flat.pin_memory().to(block_tables.device, non_blocking=True)
        token_ids, positions, slots, rows, query_starts, starts = (
            whole[: len(part)]
            for whole, part in zip(flat.split([len(_padded(part)) for part in parts]), parts, strict=True)
        )
        return cls(
            token_ids=token_ids,
            context=PromptContext(
                positions=positions,
                slots=slots,
                block_tables=block_tables,
                rows=rows,
                query_starts=query_starts,
                context_lens=starts,
                longest=int(counts.max()),
            ),
        )


def _padded(part: np.ndarray) -> np.ndarray:
    """To whole 16 bytes, so that every part begins at such a place: Triton compiles a kernel for each combination of
    arguments that do and that do not, half a second each time one is new."""
    return np.pad(part, (0, -len(part) % 4))


def _slots(chunk: ScheduledChunk, block_size: int) -> np.ndarray:
    positions = np.arange(chunk.start, chunk.end)
    table = np.array(chunk.sequence.block_table)
    return table[positions // block_size] * block_size + positions % block_size
