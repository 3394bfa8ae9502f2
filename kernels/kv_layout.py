"""The paged key-value cache: how a block lies in memory, and its allocation; knows no block table and no sequence.

A block holds `block_size` token slots of every layer, so that memory is touched block by block as it fills. Within it,
per layer and kv head: keys [D/2, block_size, 2] bf16 or [D, block_size, 1] fp32 (slots are SIMD lanes: a score
needs no horizontal sum), values [block_size/2, D, 2] bf16 or [block_size, D, 1] fp32.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

# a 16-lane load of the last row of a block of 8 slots, or of a head of 40, reads past it
_TAIL_ELEMENTS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerCache:
    """One layer's share of every block."""

    keys: Tensor
    """[num_blocks, kv_heads, D/pair, block_size, pair], pair = 2 for bf16, 1 for fp32"""
    values: Tensor
    """[num_blocks, kv_heads, block_size/pair, D, pair]"""

    @property
    def block_size(self) -> int:
        return self.keys.shape[3]

    @property
    def kv_heads(self) -> int:
        return self.keys.shape[1]

    @property
    def head_dim(self) -> int:
        return self.values.shape[3]


def kv_block_bytes(layers: int, kv_heads: int, head_dim: int, block_size: int, dtype: torch.dtype) -> int:
    return 2 * layers * kv_heads * head_dim * block_size * dtype.itemsize


def allocate_kv_cache(
    *,
    num_blocks: int,
    layers: int,
    kv_heads: int,
    head_dim: int,
    block_size: int = 16,
    dtype: torch.dtype = torch.bfloat16,
    device: torch.device | str = "cpu",
) -> list[LayerCache]:
    """Zeroed caches of all layers, num_blocks * kv_block_bytes; on a CPU a page costs memory once it is written."""
    if dtype not in (torch.bfloat16, torch.float32):
        raise ValueError(f"the KV cache is bfloat16 or float32, not {dtype}")
    if block_size % 8 or head_dim % 2:
        raise ValueError(f"block_size {block_size} must divide by 8 and head_dim {head_dim} by 2")
    shape = (num_blocks, layers, 2, kv_heads, head_dim * block_size)
    elements = num_blocks * layers * 2 * kv_heads * head_dim * block_size + _TAIL_ELEMENTS
    if torch.device(device).type == "cpu":
        # numpy's zeros come from calloc, which leaves pages untouched; torch.zeros writes them all
        flat = torch.from_numpy(np.zeros(elements * dtype.itemsize, dtype=np.uint8)).view(dtype)
    else:
        flat = torch.zeros(elements, dtype=dtype, device=device)
    cache = flat[:-_TAIL_ELEMENTS].view(shape)
    pair = 2 if dtype is torch.bfloat16 else 1
    return [
        LayerCache(
            keys=cache[:, layer, 0].unflatten(-1, (head_dim // pair, block_size, pair)),
            values=cache[:, layer, 1].unflatten(-1, (block_size // pair, head_dim, pair)),
        )
        for layer in range(layers)
    ]


def gather_keys(cache: LayerCache, blocks: Tensor) -> Tensor:
    """The tokens of some blocks, in order, as [tokens, kv_heads, D] fp32."""
    keys = cache.keys[blocks.long()].float().transpose(3, 4).flatten(2, 3)
    return keys.permute(0, 3, 1, 2).flatten(0, 1)


def gather_values(cache: LayerCache, blocks: Tensor) -> Tensor:
    values = cache.values[blocks.long()].float().transpose(3, 4).flatten(2, 3)
    return values.transpose(1, 2).flatten(0, 1)


def write_tokens(cache: LayerCache, slots: Tensor, keys: Tensor, values: Tensor) -> None:
    """Store keys and values [T, kv_heads, D] at slots block * block_size + offset; a negative slot stores nothing."""
    stored = slots >= 0
    slots, keys, values = slots[stored].long(), keys[stored], values[stored]
    block, offset = slots // cache.block_size, slots % cache.block_size
    pair = cache.keys.shape[4]
    dtype = cache.keys.dtype
    cache.keys[block, :, :, offset] = keys.unflatten(-1, (-1, pair)).to(dtype)
    cache.values[block, :, offset // pair, :, offset % pair] = values.to(dtype)
