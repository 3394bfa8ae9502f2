"""Causal attention of query rows over a paged key-value cache, decode and prefill alike; knows no scheduler.

out[t, h] = softmax(scale * q[t, h] . K[: positions[t] + 1]) @ V[: positions[t] + 1], with K and V of the row's
sequence and of the kv head that h shares. Softmax in two passes, all sums in fp32 from position 0 up.
"""

from functools import cache
from typing import Any

import torch
from torch import Tensor

from kernels.kv_layout import LayerCache, gather_keys, gather_values


def paged_attention(
    q: Tensor,
    kv_cache: LayerCache,
    block_tables: Tensor,
    seq_of_row: Tensor,
    positions: Tensor,
    scale: float | None = None,
) -> Tensor:
    """q [T, H, D] fp32, block_tables [S, max_blocks], seq_of_row [T], positions [T] int32 -> [T, H * D] fp32.

    The keys and values of every row must be in the cache already. `scale` defaults to 1 / sqrt(D).
    """
    scale = q.shape[2] ** -0.5 if scale is None else scale
    if not q.is_cpu:
        return paged_attention_reference(q, kv_cache, block_tables, seq_of_row, positions, scale)
    return _cpu().attend(q, kv_cache, block_tables, seq_of_row, positions, scale)


def paged_attention_reference(
    q: Tensor,
    kv_cache: LayerCache,
    block_tables: Tensor,
    seq_of_row: Tensor,
    positions: Tensor,
    scale: float,
) -> Tensor:
    group = q.shape[1] // kv_cache.kv_heads
    out = torch.empty_like(q)
    for row in range(q.shape[0]):
        context = int(positions[row]) + 1
        blocks = block_tables[int(seq_of_row[row])][: -(-context // kv_cache.block_size)]
        keys = gather_keys(kv_cache, blocks)[:context].repeat_interleave(group, dim=1)
        values = gather_values(kv_cache, blocks)[:context].repeat_interleave(group, dim=1)
        weights = torch.softmax(torch.einsum("hd,thd->ht", q[row], keys) * scale, dim=-1)
        out[row] = torch.einsum("ht,thd->hd", weights, values)
    return out.flatten(1)


@cache
def _cpu() -> Any:
    from kernels.cpu import attention

    return attention
