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
    """Rows of a tile of the score matrix: query positions times the heads of a program."""
    tile_tokens: int = 64
    num_warps: int = 8
    num_stages: int = 2
    max_registers: int | None = 128
    """128 lets two programs of 8 warps share a multiprocessor: 14 % faster on an H100, though ptxas then runs the
    wgmma one by one (64 tokens a tile need 144 registers for that, 32 need 128)."""
    whole_group: bool = True
    """A program takes all query heads of a KV head; else one."""
    longest_first: bool = False
    """Over the whole grid; else sequence by sequence, whose keys and values then stay in the L2."""


def default_config(max_query_len: int, group: int, head_dim: int, dtype: torch.dtype) -> PrefillConfig:
    """64 rows are one warpgroup's wgmma; fewer would leave it for mma.sync. float32 (no wgmma) keeps small tiles."""
    if dtype == torch.float32:
        return PrefillConfig(rows=32, tile_tokens=32, num_warps=4, max_registers=None)
    if max_query_len * group <= 64:
        return PrefillConfig(rows=64, num_warps=4, max_registers=None)
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
    config = config or default_config(max_query_len, group, head_dim, q.dtype)
    if config.tile_tokens % kv.block_size and kv.block_size % config.tile_tokens:
        raise ValueError(f"tiles of {config.tile_tokens} tokens do not fit blocks of {kv.block_size}")
    out = torch.empty_like(q) if out is None else out
    if max_query_len == 0:
        return out
    packed = group if config.whole_group else 1
    tiles = triton.cdiv(max_query_len, config.rows // packed)
    sequences, head_programs = rows.shape[0], heads // packed
    grid = (head_programs, sequences, tiles) if config.longest_first else (tiles, head_programs, sequences)
    _prefill_kernel[grid](
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
        PACKED=packed,
        KV_HEADS=kv_heads,
        D=head_dim,
        D_PADDED=triton.next_power_of_2(head_dim),
        BLOCK_SIZE=kv.block_size,
        ROWS=config.rows,
        TILE=config.tile_tokens,
        STAGES=config.num_stages,
        LONGEST_FIRST=config.longest_first,
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
    PACKED: tl.constexpr,
    KV_HEADS: tl.constexpr,
    D: tl.constexpr,
    D_PADDED: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    ROWS: tl.constexpr,
    TILE: tl.constexpr,
    STAGES: tl.constexpr,
    LONGEST_FIRST: tl.constexpr,
    UPCAST: tl.constexpr,
):
    QUERIES: tl.constexpr = ROWS // PACKED
    PRECISION: tl.constexpr = "ieee" if keys.dtype.element_ty == tl.float32 else "tf32"
    TILES: tl.constexpr = 2 if LONGEST_FIRST else 0
    first_head = tl.program_id(0 if LONGEST_FIRST else 1) * PACKED
    sequence = tl.program_id(1 if LONGEST_FIRST else 2)
    kv_head = first_head // GROUP
    query_start = tl.load(query_starts + sequence)
    queries = tl.load(query_starts + sequence + 1) - query_start
    context = tl.load(context_lens + sequence)
    table = block_tables + tl.load(rows + sequence).to(tl.int64) * table_stride
    first = (tl.num_programs(TILES) - 1 - tl.program_id(TILES)) * QUERIES  # of a head, the longest programs start first
    if first >= queries:
        return

    m = tl.arange(0, ROWS)
    d = tl.arange(0, D_PADDED)
    query = first + m // PACKED
    at = (query_start + query).to(tl.int64) * (GROUP * KV_HEADS * D) + (first_head + m % PACKED) * D
    at = at[:, None] + d[None, :]
    present = ((m < QUERIES * PACKED) & (query < queries))[:, None] & (d < D)[None, :]
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
    # Tokens past the end are zeros, not what an earlier tenant of the block left. A tile is whole blocks (or a part of
    # one), so a thread's slots stay the same.
    in_head = (d < D)[None, :]
    token = tl.arange(0, TILE)
    in_block = (token % BLOCK_SIZE * D)[:, None] + d[None, :]
    block = tl.load(table + token // BLOCK_SIZE, mask=token < end, other=0)
    for start in tl.range(0, end, TILE, num_stages=STAGES):
        offset = (block.to(tl.int64) * (KV_HEADS * BLOCK_SIZE * D))[:, None] + in_block
        if BLOCK_SIZE > TILE:
            offset += start % BLOCK_SIZE * D
        held = (start + token < end)[:, None] & in_head
        k = tl.load(keys + offset, mask=held, other=0.0)
        v = tl.load(values + offset, mask=held, other=0.0)
        ahead = start + TILE + token
        block = tl.load(table + ahead // BLOCK_SIZE, mask=ahead < end, other=0)  # a tile ahead
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
    # Read again, so that no thread keeps the addresses of its rows through the loop: 24 registers.
    row = tl.load(query_starts + sequence, volatile=True) + first + m // PACKED
    at = row.to(tl.int64) * (GROUP * KV_HEADS * D) + (first_head + m % PACKED) * D
    at = at[:, None] + d[None, :]
    present = (m < QUERIES * PACKED) & (row < tl.load(query_starts + sequence + 1, volatile=True))
    present = present[:, None] & (d < D)[None, :]
    tl.store(out + at, (acc / total[:, None]).to(out.dtype.element_ty), mask=present)


def prompt_attention_without_context(
    q: Tensor, k: Tensor, v: Tensor, query_starts: Tensor, max_query_len: int, scale: float | None = None
) -> Tensor:
    """q [T, H, D], k and v [T, KVH, D], rotated -> [T, H, D]: causal, over the chunks themselves alone. CUDA only.

    torch's flash attention, for a step of which every sequence starts at position 0: bf16 or fp16, D a multiple of 8
    up to 256, elements of a head contiguous (views of one qkv tensor will do); query_starts [S + 1] int32. It reads
    keys and values as they were computed, in no blocks, so they are in the cache only if another kernel writes them.
    Whether all contexts are 0 is known to whoever made the batch: nothing is read from the device.
    """
    if not q.is_cuda:
        raise ValueError("torch's flash attention of packed sequences runs on CUDA devices only")
    return torch.ops.aten._flash_attention_forward(
        q,
        k,
        v,
        query_starts,
        query_starts,
        max_query_len,
        max_query_len,
        dropout_p=0.0,
        is_causal=True,
        return_debug_mask=False,
        scale=scale,
    )[0]


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
