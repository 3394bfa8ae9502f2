"""Causal attention of sequences' query chunks over the paged cache, in tiles of online softmax; knows no rotary.

The chunks' own keys and values are in the cache already. A program takes a run of one sequence's queries for all query
heads of one KV head, so that keys and values are fetched once for the group and the diagonal is cut into finer steps
(32 positions at 128 rows of a group of 4). FlashAttention-2's loop; only tiles on the diagonal are masked.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.gpu.kv_cache import PagedKv, gather_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefillConfig:
    rows: int = 128
    """Rows of a tile of the score matrix: query positions times the heads of a group."""
    tile_tokens: int = 64
    num_warps: int = 8
    num_stages: int = 3
    max_registers: int | None = None
    """128 lets two programs of 8 warps share a multiprocessor, at the price of some spills."""


def default_config(max_query_len: int, group: int, head_dim: int, dtype: torch.dtype) -> PrefillConfig:
    """64 rows are one warpgroup's wgmma; fewer would leave it for mma.sync. float32 (no wgmma) keeps small tiles."""
    if dtype == torch.float32:
        return PrefillConfig(rows=32, tile_tokens=32, num_warps=4, num_stages=2)
    if max_query_len * group <= 64:
        return PrefillConfig(rows=64, num_warps=4)
    return PrefillConfig()


def prefill_attention(
    q: Tensor,
    kv: PagedKv,
    block_tables: Tensor,
    rows: Tensor,
    query_starts: Tensor,
    context_lens: Tensor,
    max_query_len: int,
    out: Tensor | None = None,
    scale: float | None = None,
    *,
    config: PrefillConfig | None = None,
) -> Tensor:
    """q [T, H, D] rotated, block_tables [R, max_blocks], rows [S] (of the tables) -> [T, H, D] of q's dtype.

    query_starts [S + 1]: sequence s has queries query_starts[s] .. query_starts[s + 1], at positions from
    context_lens[s] (its tokens before the chunk) on. All int32. `max_query_len` bounds the chunks; no value is read on
    the host. `scale` (positive) defaults to 1 / sqrt(D).
    """
    _, heads, head_dim = q.shape
    kv_heads = kv.kv_heads
    group = heads // kv_heads
    if heads % kv_heads or head_dim != kv.head_dim:
        raise ValueError(f"queries {tuple(q.shape)} do not fit a cache of {kv_heads} heads of {kv.head_dim}")
    if not (q.is_contiguous() and kv.keys.is_contiguous() and kv.values.is_contiguous()):
        raise ValueError("q and the cache must be contiguous")
    out = torch.empty_like(q) if out is None else out
    if max_query_len == 0:
        return out
    config = config or default_config(max_query_len, group, head_dim, q.dtype)
    _prefill_kernel[(triton.cdiv(max_query_len, config.rows // group), kv_heads, rows.shape[0])](
        q,
        kv.keys,
        kv.values,
        block_tables,
        rows,
        query_starts,
        context_lens,
        out,
        block_tables.stride(0),
        (head_dim**-0.5 if scale is None else scale) * 1.4426950408889634,
        GROUP=group,
        KV_HEADS=kv_heads,
        D=head_dim,
        D_PADDED=triton.next_power_of_2(head_dim),
        BLOCK_SIZE=kv.block_size,
        ROWS=config.rows,
        TILE=config.tile_tokens,
        STAGES=config.num_stages,
        UPCAST=not q.is_cuda,  # the interpreter's dot takes bf16 for integers
        num_warps=config.num_warps,
        maxnreg=config.max_registers,
    )
    return out


@triton.jit
def _prefill_kernel(
    q,
    keys,
    values,
    block_tables,
    rows,
    query_starts,
    context_lens,
    out,
    table_stride,
    scale_log2,
    GROUP: tl.constexpr,
    KV_HEADS: tl.constexpr,
    D: tl.constexpr,
    D_PADDED: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    ROWS: tl.constexpr,
    TILE: tl.constexpr,
    STAGES: tl.constexpr,
    UPCAST: tl.constexpr,
):
    QUERIES: tl.constexpr = ROWS // GROUP
    PRECISION: tl.constexpr = "ieee" if keys.dtype.element_ty == tl.float32 else "tf32"
    sequence = tl.program_id(2)
    kv_head = tl.program_id(1)
    query_start = tl.load(query_starts + sequence)
    queries = tl.load(query_starts + sequence + 1) - query_start
    first = (tl.num_programs(0) - 1 - tl.program_id(0)) * QUERIES  # the longest programs start first
    if first >= queries:
        return
    context = tl.load(context_lens + sequence)
    table = block_tables + tl.load(rows + sequence).to(tl.int64) * table_stride

    m = tl.arange(0, ROWS)
    d = tl.arange(0, D_PADDED)
    query = first + m // GROUP
    at = (query_start + query).to(tl.int64) * (GROUP * KV_HEADS * D) + (kv_head * GROUP + m % GROUP) * D
    at = at[:, None] + d[None, :]
    present = ((m < QUERIES * GROUP) & (query < queries))[:, None] & (d < D)[None, :]
    tile = tl.load(q + at, mask=present, other=0.0)
    if UPCAST:
        tile = tile.to(tl.float32)
    position = context + query
    end = context + tl.minimum(first + QUERIES, queries)
    interior = (context + first + 1) // TILE * TILE

    top = tl.full((ROWS,), -float("inf"), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    acc = tl.zeros((ROWS, D_PADDED), tl.float32)
    keys += kv_head * (BLOCK_SIZE * D)
    values += kv_head * (BLOCK_SIZE * D)
    in_head = (d < D)[None, :]
    token = tl.arange(0, TILE)
    block = tl.load(table + tl.minimum(token, end - 1) // BLOCK_SIZE)
    for start in tl.range(0, end, TILE, num_stages=STAGES):
        slot = tl.minimum(start + token, end - 1) % BLOCK_SIZE
        offset = (block.to(tl.int64) * (KV_HEADS * BLOCK_SIZE * D) + slot * D)[:, None] + d[None, :]
        if D == D_PADDED:
            k = tl.load(keys + offset)
            v = tl.load(values + offset)
        else:
            k = tl.load(keys + offset, mask=in_head, other=0.0)
            v = tl.load(values + offset, mask=in_head, other=0.0)
        block = tl.load(table + tl.minimum(start + TILE + token, end - 1) // BLOCK_SIZE)  # a tile ahead
        if UPCAST:
            k, v = k.to(tl.float32), v.to(tl.float32)
        scores = tl.dot(tile, tl.trans(k), input_precision=PRECISION)
        if start >= interior:
            scores = tl.where((start + token)[None, :] <= position[:, None], scores, -float("inf"))
        new_top = tl.maximum(top, tl.max(scores, 1) * scale_log2)
        weights = tl.exp2(scores * scale_log2 - new_top[:, None])
        rescale = tl.exp2(top - new_top)
        total = total * rescale + tl.sum(weights, 1)
        acc = tl.dot(weights.to(v.dtype), v, acc * rescale[:, None], input_precision=PRECISION)
        top = new_top
    tl.store(out + at, (acc / total[:, None]).to(out.dtype.element_ty), mask=present)


def prefill_attention_reference(
    q: Tensor,
    kv: PagedKv,
    block_tables: Tensor,
    rows: Tensor,
    query_starts: Tensor,
    context_lens: Tensor,
    scale: float | None = None,
) -> Tensor:
    """The same in float64, sequence by sequence."""
    scale = kv.head_dim**-0.5 if scale is None else scale
    out = torch.zeros(q.shape, dtype=torch.float64, device=q.device)
    starts = query_starts.tolist()
    for s, context in enumerate(context_lens.tolist()):
        chunk = slice(starts[s], starts[s + 1])
        length = context + starts[s + 1] - starts[s]
        blocks = block_tables[int(rows[s])][: -(-length // kv.block_size)]
        keys, values = (gather_tokens(x, blocks)[:length].double() for x in (kv.keys, kv.values))
        queries = q[chunk].double().unflatten(1, (kv.kv_heads, -1))
        scores = torch.einsum("qkgd,tkd->kgqt", queries, keys) * scale
        tokens = torch.arange(length, device=q.device)
        scores.masked_fill_(tokens[None, :] > tokens[context:, None], -torch.inf)
        out[chunk] = torch.einsum("kgqt,tkd->qkgd", scores.softmax(-1), values).flatten(1, 2)
    return out
