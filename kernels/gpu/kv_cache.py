"""The paged key-value cache on a GPU: how a layer's blocks lie in memory; it knows no block table and no sequence.

Layer by layer, then block by block: a tile of one KV head of one block is block_size x D contiguous elements (4 KiB at
16 x 128 bf16), and a layer's keys are one region, so that a step's reads of a layer meet few pages of the TLB.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class PagedKv:
    """One layer's keys and values."""

    keys: Tensor
    """[num_blocks, kv_heads, block_size, D] bf16 or fp32"""
    values: Tensor
    """The same shape"""

    @property
    def block_size(self) -> int:
        return self.keys.shape[2]

    @property
    def kv_heads(self) -> int:
        return self.keys.shape[1]

    @property
    def head_dim(self) -> int:
        return self.keys.shape[3]


def allocate_paged_kv(
    *,
    num_blocks: int,
    layers: int,
    kv_heads: int,
    head_dim: int,
    block_size: int,
    dtype: torch.dtype,
    device: torch.device | str,
) -> list[PagedKv]:
    """Zeroed, so that a masked product never meets a NaN that an earlier tenant of the memory left."""
    shape = (layers, 2, num_blocks, kv_heads, block_size, head_dim)
    cache = torch.zeros(shape, dtype=dtype, device=device)
    return [PagedKv(keys=layer[0], values=layer[1]) for layer in cache]


def gather_tokens(blocks_of_heads: Tensor, blocks: Tensor) -> Tensor:
    """Keys (or values) of some blocks, in order, as [tokens, kv_heads, D]."""
    return blocks_of_heads[blocks.long()].transpose(1, 2).flatten(0, 1)
