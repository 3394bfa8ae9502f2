"""A step's scheduled chunks as flat arrays: which token, at which position, into which slot; it runs nothing."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from engine.sequence import ScheduledChunk


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenBatch:
    """The T tokens of one step, those of S sequences one after another: chunks of prompts and decodes alike."""

    token_ids: Tensor
    """[T] int64"""
    positions: Tensor
    """[T] int64, each in its own sequence"""
    positions_int32: Tensor
    """The same, as the attention kernel reads them."""
    slots: Tensor
    """[T] int64: block * block_size + offset, where K and V of a token go"""
    sequence_of_token: Tensor
    """[T] int32: a row of block_tables"""
    block_tables: Tensor
    """[S, blocks] int32, padded with zeros"""

    @classmethod
    def of(cls, chunks: list[ScheduledChunk], block_size: int, device: str = "cpu") -> TokenBatch:
        """Built with numpy: at 32 decodes every torch call here would cost as much as the whole loop."""
        num_sequences = len(chunks)
        tables = np.zeros((num_sequences, max(len(chunk.sequence.block_table) for chunk in chunks)), dtype=np.int32)
        token_ids: list[int] = []
        starts, counts = [0] * num_sequences, [0] * num_sequences
        for row, chunk in enumerate(chunks):
            sequence, start, count = chunk.sequence, chunk.start, chunk.num_tokens
            starts[row], counts[row] = start, count
            token_ids += sequence.token_ids[start : start + count]
            tables[row, : len(sequence.block_table)] = sequence.block_table
        counts_of = np.array(counts)
        owner = np.repeat(np.arange(num_sequences), counts_of)
        # Position in the sequence = index in the batch - index of the chunk's first token + the chunk's start.
        offset = np.array(starts) - (np.cumsum(counts_of) - counts_of)
        positions = np.arange(len(owner)) + offset[owner]
        slots = tables[owner, positions // block_size].astype(np.int64) * block_size + positions % block_size
        return cls(
            token_ids=_tensor(np.array(token_ids, dtype=np.int64), device),
            positions=_tensor(positions, device),
            positions_int32=_tensor(positions.astype(np.int32), device),
            slots=_tensor(slots, device),
            sequence_of_token=_tensor(owner.astype(np.int32), device),
            block_tables=_tensor(tables, device),
        )

    def first(self, num_tokens: int) -> TokenBatch:
        """The same memory, cut to its first sequences of one token each."""
        return TokenBatch(
            token_ids=self.token_ids[:num_tokens],
            positions=self.positions[:num_tokens],
            positions_int32=self.positions_int32[:num_tokens],
            slots=self.slots[:num_tokens],
            sequence_of_token=self.sequence_of_token[:num_tokens],
            block_tables=self.block_tables[:num_tokens],
        )


def _tensor(array: np.ndarray, device: str) -> Tensor:
    tensor = torch.from_numpy(array)
    return tensor if device == "cpu" else tensor.to(device, non_blocking=True)
