"""Attention of a decode step over the paged cache, fused with rotary and the new token's write; knows no scheduler.

A program attends a run of one row's cached tokens for all query heads of one KV head. Which runs there are is decided
once a step on the device (`plan_splits`), for all layers: a few programs per multiprocessor whatever the mixture of
context lengths, on a grid that depends on nothing but the batch. A row in several runs is combined by the program that
finishes it last (Flash-Decoding without the second launch).

What the kernel ahead did not write (launch.py: plan, block tables, angles, cached tokens) is read before `gdc_wait`:
all tiles of the pipeline's first stages are under way when the queries arrive.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.gpu.kv_cache import PagedKv, gather_tokens
from kernels.gpu.launch import num_sms, pdl
from kernels.gpu.rotary import rotated_reference
from kernels.rotary import RopeTables

ITEM_FIELDS = 8
"""int32 a work item: batch row, row of the block table, first and end cached token, position of the new token (-1: the
row is padding), runs of the row, index of this run, none. One sector of 32 bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeConfig:
    tile_tokens: int = 64
    num_warps: int = 4
    num_stages: int = 3
    """A program holds one tile less than that in flight, of 32 KiB in bf16 at 64 x 128."""
    programs_per_sm: int = 3
    """Programs wanted per multiprocessor; what the chunk length is derived from."""
    min_chunk_tokens: int = 128
    """Shorter runs cost more in combining than they give in parallel reads."""
    max_registers: int | None = None
    combine_in_launch: bool = True
    """The last program of a row combines it; else a second launch does."""

    def __post_init__(self) -> None:
        if self.min_chunk_tokens % self.tile_tokens:
            raise ValueError(f"runs of {self.min_chunk_tokens} tokens are not whole tiles of {self.tile_tokens}")


Rows = Literal["one", "few", "many"]


def default_config(head_dim: int, dtype: torch.dtype, rows: Rows = "many") -> DecodeConfig:
    """float32 halves the tile. Heads of "one" row (up to three) and of "few" are no more than fill the card once.

    They are split into one program a multiprocessor with 96 KiB or more in flight (3 TB/s at 1 us of latency need 24):
    16 rows of 8 heads are then not split at all, and a long row is split 16 times, not 43. One row's context is short
    work for every program: small tiles; few rows have long runs, which larger tiles read faster (27.7 against 30.8 us
    at 16 x 1,024). Many get three programs a multiprocessor, one's start and end under the others' reads; 168
    registers are what three of 4 warps can have.
    """
    is_wide = dtype.itemsize * triton.next_power_of_2(head_dim) > 256
    tile = 32 if is_wide else 64
    if rows == "many":
        return DecodeConfig(tile_tokens=tile, max_registers=168 if dtype.itemsize == 2 else None)
    if rows == "few" and not is_wide:
        return DecodeConfig(tile_tokens=128, num_warps=8, num_stages=3, programs_per_sm=1)
    return DecodeConfig(tile_tokens=tile, num_stages=4, programs_per_sm=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitPlan:
    """What a step's rows are split into, and the scratch memory of rows in several runs; made once for a model."""

    items: Tensor
    """[max_items, ITEM_FIELDS] int32"""
    num_items: Tensor
    """[1] int32"""
    arrivals: Tensor
    """[max_batch, kv_heads] int32; 0 between launches"""
    partial_out: Tensor
    """[max_items, kv_heads, group padded to a power of 2, D] fp32: not yet divided by the sum"""
    partial_max: Tensor
    """[max_items, kv_heads, group padded] fp32, in units of log2"""
    partial_sum: Tensor
    sms: int
    one: DecodeConfig
    few: DecodeConfig
    many: DecodeConfig

    def config(self, batch: int) -> DecodeConfig:
        """`many` from one and a half heads of rows per multiprocessor: 25 rows of 8 heads on an H100."""
        if 2 * batch * self.arrivals.shape[1] > 3 * self.sms:
            return self.many
        return self.one if batch < 4 else self.few

    def programs(self, batch: int) -> int:
        """Programs wanted, the static bound on how many runs are added to the rows."""
        return self.sms * self.config(batch).programs_per_sm

    def max_items(self, batch: int) -> int:
        return batch + self.programs(batch) // self.arrivals.shape[1]


def allocate_split_plan(
    *,
    max_batch: int,
    heads: int,
    kv_heads: int,
    head_dim: int,
    dtype: torch.dtype,
    device: torch.device | str,
    config: DecodeConfig | None = None,
) -> SplitPlan:
    """`dtype` is the cache's; `config` is for every batch.

    ValueError for query heads that the KV heads do not divide, or more than 32 to one.
    """
    if heads % kv_heads or heads // kv_heads > 32:
        raise ValueError(f"{heads} query heads on {kv_heads} KV heads: whole groups of 1 to 32 are supported")
    one, few, many = (config or default_config(head_dim, dtype, rows) for rows in get_args(Rows))
    arrivals = torch.zeros((max_batch, kv_heads), dtype=torch.int32, device=device)
    sms = num_sms(arrivals)
    max_items = max_batch + sms * max(few.programs_per_sm, many.programs_per_sm) // kv_heads
    partials = (max_items, kv_heads, triton.next_power_of_2(heads // kv_heads))
    return SplitPlan(
        items=torch.zeros((max_items, ITEM_FIELDS), dtype=torch.int32, device=device),
        num_items=torch.zeros(1, dtype=torch.int32, device=device),
        arrivals=arrivals,
        partial_out=torch.zeros((*partials, head_dim), dtype=torch.float32, device=device),
        partial_max=torch.zeros(partials, dtype=torch.float32, device=device),
        partial_sum=torch.zeros(partials, dtype=torch.float32, device=device),
        sms=sms,
        one=one,
        few=few,
        many=many,
    )


def plan_splits(seq_lens: Tensor, rows: Tensor, plan: SplitPlan) -> None:
    """seq_lens [B] int32 (with the new token; 0: padding), rows [B] int32 (of the block tables) -> fills `plan`.

    `decode_attention` reads the plan before it waits: a kernel must come between the two.
    """
    batch = seq_lens.shape[0]
    if batch > plan.arrivals.shape[0]:
        raise ValueError(f"{batch} rows; the plan holds {plan.arrivals.shape[0]}")
    padded = triton.next_power_of_2(batch)
    config = plan.config(batch)
    use_pdl = pdl(seq_lens)
    _plan_kernel[(1,)](
        seq_lens,
        rows,
        plan.items,
        plan.num_items,
        batch,
        plan.programs(batch),
        config.min_chunk_tokens,
        RUN_TILES=0.0125 * plan.partial_max.shape[2],
        KV_HEADS=plan.arrivals.shape[1],
        TILE=config.tile_tokens,
        FIELDS=ITEM_FIELDS,
        ROWS=padded,
        OTHERS=min(16, padded),
        RUNS=max(1, 512 // padded),
        PDL=use_pdl,
        num_warps=4,
        launch_pdl=use_pdl,
    )


def decode_attention(
    qkv: Tensor,
    kv: PagedKv,
    block_tables: Tensor,
    plan: SplitPlan,
    tables: RopeTables,
    *,
    q_norm: Tensor | None = None,
    k_norm: Tensor | None = None,
    eps: float = 1e-6,
    scale: float | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """qkv [B, (H + 2 KVH) * D] before rotation, block_tables [R, max_blocks] int32 -> [B, H * D] of qkv's dtype.

    Row b's new token is at seq_lens[b] - 1, as `plan_splits` was given it for this batch; its key and value are
    written to the cache, and it attends to itself and all before. Rows of length 0 give zeros and touch no cache.
    `q_norm`, `k_norm` [D] fp32; `scale` defaults to 1 / sqrt(D).
    """
    batch, width = qkv.shape
    kv_heads, head_dim, config = kv.kv_heads, kv.head_dim, plan.config(batch)
    heads = width // head_dim - 2 * kv_heads
    group = heads // kv_heads
    group_padded = plan.partial_max.shape[2]
    if plan.partial_out.shape[1] != kv_heads or plan.partial_out.shape[3] != head_dim or group > group_padded:
        raise ValueError("the plan was allocated for other heads")
    if not (qkv.is_contiguous() and kv.keys.is_contiguous() and kv.values.is_contiguous()):
        raise ValueError("qkv and the cache must be contiguous")
    scale = head_dim**-0.5 if scale is None else scale
    out = torch.empty((batch, heads * head_dim), dtype=qkv.dtype, device=qkv.device) if out is None else out
    use_pdl = pdl(qkv)
    _decode_kernel[(kv_heads, plan.max_items(batch))](
        qkv,
        tables.cos,
        tables.sin,
        tables.cos if q_norm is None else q_norm,
        tables.cos if k_norm is None else k_norm,
        kv.keys,
        kv.values,
        block_tables,
        plan.items,
        plan.num_items,
        plan.partial_out,
        plan.partial_max,
        plan.partial_sum,
        plan.arrivals,
        out,
        block_tables.stride(0),
        scale * 1.4426950408889634,
        eps,
        GROUP=group,
        KV_HEADS=kv_heads,
        D=head_dim,
        D_PADDED=triton.next_power_of_2(head_dim),
        GROUP_PADDED=group_padded,
        BLOCK_SIZE=kv.block_size,
        TILE=config.tile_tokens,
        FIELDS=ITEM_FIELDS,
        NORM_Q=q_norm is not None,
        NORM_K=k_norm is not None,
        COMBINE=config.combine_in_launch,
        STAGES=config.num_stages,
        UPCAST=not qkv.is_cuda,  # the interpreter's dot takes bf16 for integers
        PDL=use_pdl,
        num_warps=config.num_warps,
        maxnreg=config.max_registers,
        launch_pdl=use_pdl,
    )
    if not config.combine_in_launch:
        _combine_kernel[(kv_heads, plan.max_items(batch))](
            plan.items,
            plan.num_items,
            plan.partial_out,
            plan.partial_max,
            plan.partial_sum,
            out,
            GROUP=group,
            KV_HEADS=kv_heads,
            D=head_dim,
            D_PADDED=triton.next_power_of_2(head_dim),
            GROUP_PADDED=group_padded,
            FIELDS=ITEM_FIELDS,
            PDL=use_pdl,
            num_warps=4,
            launch_pdl=use_pdl,
        )
    return out


@triton.jit
def _runs_of(cached, present, chunk, RUN_TILES: tl.constexpr, TILE: tl.constexpr):
    """Runs of each row, and the tokens of one, evened out."""
    # A run costs its combining too, RUN_TILES tiles in time: t tiles in runs of n take n + t / n * RUN_TILES at least.
    best = tl.sqrt(tl.cdiv(cached, TILE) * RUN_TILES).to(tl.int32) * TILE
    runs = tl.maximum(tl.cdiv(cached, tl.maximum(chunk, best)), 1)
    step = tl.maximum(tl.cdiv(tl.cdiv(cached, runs), TILE), 1) * TILE
    return tl.where(present, tl.maximum(tl.cdiv(cached, step), 1), 0), step


@triton.jit
def _plan_kernel(
    seq_lens,
    rows,
    items,
    num_items,
    batch,
    programs,
    min_chunk,
    RUN_TILES: tl.constexpr,
    KV_HEADS: tl.constexpr,
    TILE: tl.constexpr,
    FIELDS: tl.constexpr,
    ROWS: tl.constexpr,
    OTHERS: tl.constexpr,
    RUNS: tl.constexpr,
    PDL: tl.constexpr,
):
    if PDL:
        tl.extra.cuda.gdc_wait()
    row = tl.arange(0, ROWS)
    present = row < batch
    length = tl.load(seq_lens + row, mask=present, other=0)
    table_row = tl.load(rows + row, mask=present, other=0)
    cached = tl.maximum(length - 1, 0)

    # chunk >= total * KV_HEADS / programs bounds the runs by batch + programs / KV_HEADS, whatever the lengths.
    chunk = tl.cdiv(tl.cdiv(tl.sum(cached, 0) * KV_HEADS, programs), TILE) * TILE
    chunk = tl.maximum(chunk, min_chunk)
    runs, step = _runs_of(cached, present, chunk, RUN_TILES, TILE)
    # Longest runs first: what starts last ends the launch, and of 256 rows of 100 to 2,000 tokens a long one that
    # starts last would keep a third of the launch waiting for it.
    first_item = tl.zeros([ROWS], tl.int32)
    for other_0 in range(0, ROWS, OTHERS):
        other = other_0 + tl.arange(0, OTHERS)
        other_present = other < batch
        other_cached = tl.maximum(tl.load(seq_lens + other, mask=other_present, other=0) - 1, 0)
        other_runs, other_step = _runs_of(other_cached, other_present, chunk, RUN_TILES, TILE)
        is_tie = (other_step[None, :] == step[:, None]) & (other[None, :] < row[:, None])
        ahead = (other_step[None, :] > step[:, None]) | is_tie
        first_item += tl.sum(tl.where(ahead, other_runs[None, :], 0), 1)
    tl.store(num_items, tl.sum(runs, 0))

    for run_0 in range(0, tl.max(runs, 0), RUNS):
        run = run_0 + tl.arange(0, RUNS)[None, :]
        of_row = run < runs[:, None]
        at = items + (first_item[:, None] + run) * FIELDS
        begin = run * step[:, None]
        tl.store(at, row[:, None] + run * 0, mask=of_row)
        tl.store(at + 1, table_row[:, None] + run * 0, mask=of_row)
        tl.store(at + 2, begin, mask=of_row)
        tl.store(at + 3, tl.minimum(begin + step[:, None], cached[:, None]), mask=of_row)
        tl.store(at + 4, (length - 1)[:, None] + run * 0, mask=of_row)
        tl.store(at + 5, runs[:, None] + run * 0, mask=of_row)
        tl.store(at + 6, run + row[:, None] * 0, mask=of_row)


@triton.jit
def _decode_kernel(
    qkv,
    cos,
    sin,
    q_norm,
    k_norm,
    keys,
    values,
    block_tables,
    items,
    num_items,
    partial_out,
    partial_max,
    partial_sum,
    arrivals,
    out,
    table_stride,
    scale_log2,
    eps,
    GROUP: tl.constexpr,
    KV_HEADS: tl.constexpr,
    D: tl.constexpr,
    D_PADDED: tl.constexpr,
    GROUP_PADDED: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    TILE: tl.constexpr,
    FIELDS: tl.constexpr,
    NORM_Q: tl.constexpr,
    NORM_K: tl.constexpr,
    COMBINE: tl.constexpr,
    STAGES: tl.constexpr,
    UPCAST: tl.constexpr,
    PDL: tl.constexpr,
):
    HEADS: tl.constexpr = GROUP * KV_HEADS
    M: tl.constexpr = max(16, GROUP_PADDED)  # the least a dot takes
    PRECISION: tl.constexpr = "ieee" if keys.dtype.element_ty == tl.float32 else "tf32"
    kv_head = tl.program_id(0)
    item = tl.program_id(1)
    # The plan, the block tables and all but the new token's keys and values are older than the kernel ahead.
    at = items + item * FIELDS
    count = tl.load(num_items)
    row = tl.load(at).to(tl.int64)
    table = block_tables + tl.load(at + 1).to(tl.int64) * table_stride
    begin = tl.load(at + 2)
    end = tl.load(at + 3)
    position = tl.load(at + 4)
    runs = tl.load(at + 5)
    run = tl.load(at + 6)
    m = tl.arange(0, M)
    d = tl.arange(0, D_PADDED)
    in_head = d < D
    of_group = (m < GROUP)[:, None] & in_head[None, :]
    out_at = out + row * (HEADS * D) + (kv_head * GROUP + m)[:, None] * D + d[None, :]
    if (item >= count) | (position < 0):
        if PDL:
            tl.extra.cuda.gdc_wait()
        if item < count:
            tl.store(out_at, tl.zeros((M, D_PADDED), out.dtype.element_ty), mask=of_group)
        return

    # Tokens past the end read the last one's slot again: no other row's data. A row of one token reads nothing.
    token = tl.arange(0, TILE)
    last = tl.maximum(end - 1, 0)
    block = tl.load(table + tl.minimum(begin + token, last) // BLOCK_SIZE)
    readable = (in_head & (begin < end))[None, :]
    keys_of_head = keys + kv_head * (BLOCK_SIZE * D)
    values_of_head = values + kv_head * (BLOCK_SIZE * D)

    q = tl.zeros((M, D_PADDED), tl.float32 if UPCAST else keys.dtype.element_ty)
    top = tl.full((M,), -float("inf"), tl.float32)
    totals = tl.zeros((M, TILE), tl.float32)  # summed over tokens after the loop: no exchange between warps in it
    acc = tl.zeros((M, D_PADDED), tl.float32)
    for start in tl.range(begin, tl.maximum(end, begin + 1), TILE, num_stages=STAGES):
        slot = tl.minimum(start + token, last) % BLOCK_SIZE
        offset = block.to(tl.int64) * (KV_HEADS * BLOCK_SIZE * D) + slot * D
        k = tl.load(keys_of_head + offset[:, None] + d[None, :], mask=readable, other=0.0)
        v = tl.load(values_of_head + offset[:, None] + d[None, :], mask=readable, other=0.0)
        block = tl.load(table + tl.minimum(start + TILE + token, last) // BLOCK_SIZE)  # a tile ahead
        if start == begin:
            # Here, not before the loop: the pipeline's first tiles are then on their way before the wait.
            new_block = tl.load(table + position // BLOCK_SIZE).to(tl.int64)
            angle = position.to(tl.int64) * (D // 2) + d % (D // 2)
            c = tl.load(cos + angle, mask=in_head, other=0.0)[None, :]
            s = tl.load(sin + angle, mask=in_head, other=0.0)[None, :]
            s = tl.where(d[None, :] < D // 2, -s, s)
            if PDL:
                tl.extra.cuda.gdc_wait()
                tl.extra.cuda.gdc_launch_dependents()
            is_last = run == runs - 1
            heads = qkv + row * ((HEADS + 2 * KV_HEADS) * D)
            of_new = (is_last & (m < M))[:, None] & in_head[None, :]
            once = (is_last & (m == 0))[:, None] & in_head[None, :]
            rotated, other = _load_pairs(heads, kv_head * GROUP + m, of_group, d, D)
            # The new key and value M times: in the queries' layout, no exchange between threads.
            new_head = HEADS + kv_head + m * 0
            k_new, k_other = _load_pairs(heads, new_head, of_new, d, D)
            v_new = tl.load(heads + (new_head + KV_HEADS)[:, None] * D + d[None, :], mask=of_new, other=0.0)
            rotated = _rotated(rotated, other, q_norm, c, s, d, in_head, eps, D, NORM_Q)
            k_new = _rotated(k_new, k_other, k_norm, c, s, d, in_head, eps, D, NORM_K).to(keys.dtype.element_ty)
            v_new = v_new.to(values.dtype.element_ty)
            new_at = (new_block * KV_HEADS + kv_head) * (BLOCK_SIZE * D) + position % BLOCK_SIZE * D
            new_at += (m * 0)[:, None] + d[None, :]
            tl.store(keys + new_at, k_new, mask=once)
            tl.store(values + new_at, v_new, mask=once)
            rotated = rotated.to(keys.dtype.element_ty)
            # The new token is the last run's, apart from the cache.
            score = tl.sum(rotated.to(tl.float32) * k_new.to(tl.float32), 1) * scale_log2
            top = tl.where(is_last, score, -float("inf"))
            totals = tl.where((is_last & (token == 0))[None, :], 1.0, totals)
            acc = acc + v_new.to(tl.float32)
            q = rotated.to(q.dtype)
        if UPCAST:
            k, v = k.to(tl.float32), v.to(tl.float32)
        scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale_log2
        scores = tl.where((start + token < end)[None, :], scores, -float("inf"))
        new_top = tl.maximum(top, tl.max(scores, 1))
        weights = tl.exp2(scores - new_top[:, None])
        rescale = tl.exp2(top - new_top)
        totals = totals * rescale[:, None] + weights
        acc = tl.dot(weights.to(v.dtype), v, acc * rescale[:, None], input_precision=PRECISION)
        top = new_top
    total = tl.sum(totals, 1)

    if runs == 1:
        tl.store(out_at, (acc / total[:, None]).to(out.dtype.element_ty), mask=of_group)
    else:
        partial = (item * KV_HEADS + kv_head).to(tl.int64) * GROUP_PADDED + m
        kept = m < GROUP_PADDED
        tl.store(partial_out + partial[:, None] * D + d[None, :], acc, mask=kept[:, None] & in_head[None, :])
        tl.store(partial_max + partial, top, mask=kept)
        tl.store(partial_sum + partial, total, mask=kept)
        if COMBINE:
            tl.debug_barrier()  # all threads' partials come before the one thread's release
            arrival = arrivals + row * KV_HEADS + kv_head
            if tl.atomic_add(arrival, 1, sem="acq_rel", scope="gpu") == runs - 1:
                tl.store(arrival, 0)
                _combine(
                    partial_out,
                    partial_max,
                    partial_sum,
                    out + row * (HEADS * D),
                    item - run,
                    runs,
                    kv_head,
                    GROUP,
                    KV_HEADS,
                    D,
                    D_PADDED,
                    GROUP_PADDED,
                )


@triton.jit
def _load_pairs(heads, head, present, d, D: tl.constexpr):
    """Each element and the one half a head away: a second read of cached lines rather than an exchange by threads."""
    at = heads + head[:, None] * D
    x = tl.load(at + d[None, :], mask=present, other=0.0).to(tl.float32)
    y = tl.load(at + ((d + D // 2) % D)[None, :], mask=present, other=0.0).to(tl.float32)
    return x, y


@triton.jit
def _rotated(x, y, norm, c, s, d, in_head, eps, D: tl.constexpr, NORM: tl.constexpr):
    """[heads, D_PADDED] fp32; `s` is negative in the first half."""
    if NORM:
        scale = tl.rsqrt(tl.sum(x * x, 1) / D + eps)[:, None]
        x = x * scale * tl.load(norm + d, mask=in_head, other=0.0)[None, :]
        y = y * scale * tl.load(norm + (d + D // 2) % D, mask=in_head, other=0.0)[None, :]
    return x * c + y * s


@triton.jit
def _combine(
    partial_out,
    partial_max,
    partial_sum,
    out_row,
    first_item,
    runs,
    kv_head,
    GROUP: tl.constexpr,
    KV_HEADS: tl.constexpr,
    D: tl.constexpr,
    D_PADDED: tl.constexpr,
    GROUP_PADDED: tl.constexpr,
):
    """One row and KV head. Partials come from other multiprocessors: read past the first-level cache."""
    # Small groups: 32 KiB in registers, one round trip for up to 16 runs of 4 heads. Large ones: 16 KiB a stage, of
    # several at once (16 runs of 32 heads, one at a time, took 17 us on an H100).
    WIDE: tl.constexpr = GROUP_PADDED >= 16
    RUNS: tl.constexpr = max(1, (4096 if WIDE else 8192) // (GROUP_PADDED * D_PADDED))
    g = tl.arange(0, GROUP_PADDED)
    d = tl.arange(0, D_PADDED)
    top = tl.full((GROUP_PADDED,), -float("inf"), tl.float32)
    total = tl.zeros((GROUP_PADDED,), tl.float32)
    acc = tl.zeros((GROUP_PADDED, D_PADDED), tl.float32)
    for run_0 in tl.range(0, runs, RUNS, num_stages=4 if WIDE else 1):
        run = run_0 + tl.arange(0, RUNS)
        item = (first_item + run).to(tl.int64)
        at = (item * KV_HEADS + kv_head)[:, None] * GROUP_PADDED + g[None, :]
        present = (run < runs)[:, None] & (g < GROUP_PADDED)[None, :]
        tops = tl.load(partial_max + at, mask=present, other=-float("inf"), cache_modifier=".cg")
        totals = tl.load(partial_sum + at, mask=present, other=0.0, cache_modifier=".cg")
        outs = tl.load(
            partial_out + at[:, :, None] * D + d[None, None, :],
            mask=present[:, :, None] & (d < D)[None, None, :],
            other=0.0,
            cache_modifier=".cg",
        )
        new_top = tl.maximum(top, tl.max(tops, 0))
        rescale = tl.exp2(top - new_top)
        weights = tl.exp2(tops - new_top[None, :])
        total = total * rescale + tl.sum(weights * totals, 0)
        acc = acc * rescale[:, None] + tl.sum(weights[:, :, None] * outs, 0)
        top = new_top
    at = out_row + (kv_head * GROUP + g)[:, None] * D + d[None, :]
    present = (g < GROUP)[:, None] & (d < D)[None, :]
    tl.store(at, (acc / total[:, None]).to(out_row.dtype.element_ty), mask=present)


@triton.jit
def _combine_kernel(
    items,
    num_items,
    partial_out,
    partial_max,
    partial_sum,
    out,
    GROUP: tl.constexpr,
    KV_HEADS: tl.constexpr,
    D: tl.constexpr,
    D_PADDED: tl.constexpr,
    GROUP_PADDED: tl.constexpr,
    FIELDS: tl.constexpr,
    PDL: tl.constexpr,
):
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    kv_head = tl.program_id(0)
    item = tl.program_id(1)
    at = items + item * FIELDS
    count = tl.load(num_items)
    row = tl.load(at).to(tl.int64)
    runs = tl.load(at + 5)
    run = tl.load(at + 6)
    if (item < count) & (run == 0) & (runs > 1):
        _combine(
            partial_out,
            partial_max,
            partial_sum,
            out + row * (GROUP * KV_HEADS * D),
            item,
            runs,
            kv_head,
            GROUP,
            KV_HEADS,
            D,
            D_PADDED,
            GROUP_PADDED,
        )


def decode_attention_reference(
    qkv: Tensor,
    kv: PagedKv,
    block_tables: Tensor,
    rows: Tensor,
    seq_lens: Tensor,
    tables: RopeTables,
    *,
    q_norm: Tensor | None = None,
    k_norm: Tensor | None = None,
    eps: float = 1e-6,
    scale: float | None = None,
) -> Tensor:
    """The same in float64, row by row; the new tokens are written to the cache in its dtype."""
    scale = kv.head_dim**-0.5 if scale is None else scale
    heads = qkv.double().unflatten(1, (-1, kv.head_dim))
    q, k, v = heads.split([heads.shape[1] - 2 * kv.kv_heads, kv.kv_heads, kv.kv_heads], dim=1)
    positions = (seq_lens - 1).clamp(min=0)
    q = rotated_reference(q, positions, tables, q_norm, eps)
    k = rotated_reference(k, positions, tables, k_norm, eps)
    out = torch.zeros_like(q)
    for b, length in enumerate(seq_lens.tolist()):
        if length == 0:
            continue
        table = block_tables[int(rows[b])]
        block, offset = int(table[(length - 1) // kv.block_size]), (length - 1) % kv.block_size
        kv.keys[block, :, offset] = k[b].to(kv.keys.dtype)
        kv.values[block, :, offset] = v[b].to(kv.values.dtype)
        blocks = table[: -(-length // kv.block_size)]
        keys, values = (gather_tokens(x, blocks)[:length].double() for x in (kv.keys, kv.values))
        queries = q[b].unflatten(0, (kv.kv_heads, -1))
        weights = torch.softmax(torch.einsum("kgd,tkd->kgt", queries, keys) * scale, dim=-1)
        out[b] = torch.einsum("kgt,tkd->kgd", weights, values).flatten(0, 1)
    return out.flatten(1)
