"""y = x @ W.T for one row x, at the speed the weights can be read; it does not know which layer it is.

A program takes a few rows of W and walks K in tiles: fp32 accumulators a column, one reduction at the end. It sees all
of x, so an RMS norm of x costs a sum of squares beside the products and no launch. Rows of W are read once and evicted
first: x, its norm weights and nothing else stay in the L1. Beats cuBLAS on an H100 at every shape of Llama-3.1-8B.

An int8 becomes fp32 by a byte permute into the mantissa of 2^23 and one subtraction: 3.25 instructions a weight with
its multiply-add, where a conversion instruction would run at half rate or less. An fp8 pair has an instruction of its
own (`cvt.rn.f16x2.e4m3x2`, sm_89+), which Triton emits.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.gpu.launch import pdl


@dataclass(frozen=True, slots=True, kw_only=True)
class GemvConfig:
    rows: int
    """of W a program takes (pairs of rows where the product is gated)"""
    block_k: int
    num_warps: int


def default_config(n: int, k: int, weight_bytes: int, *, gated: bool = False) -> GemvConfig:
    """`n` outputs; a thread's first tile is 64 bytes (rows x block_k) of weights, all of it in flight at once."""
    if weight_bytes == 1:
        return GemvConfig(rows=1 if gated else 2, block_k=2048, num_warps=4)
    if weight_bytes == 2:
        return GemvConfig(rows=1, block_k=2048, num_warps=4)
    return GemvConfig(rows=1, block_k=1024, num_warps=4)


def gemv(
    x: Tensor,
    weight: Tensor,
    out: Tensor | None = None,
    *,
    scale: Tensor | None = None,
    norm: tuple[Tensor, float] | None = None,
    residual: Tensor | None = None,
    gated: bool = False,
    bias: Tensor | None = None,
    config: GemvConfig | None = None,
) -> Tensor:
    """[1, K] @ [N, K].T -> [1, N] in x's dtype (or out's); gated: N = 2F rows, gates first -> silu(gate) * up, [1, F].

    weight: bf16, fp32, or int8 / float8_e4m3fn with `scale` [N] fp32; contiguous.
    norm: (weight [K], eps): the product is of rms_norm(x). residual: [1, N], added; may be `out`.
    bias: [N] fp32, added before the gate. x must not be `out`. ValueError where the shapes do not fit.
    """
    n, k = weight.shape
    outputs = n // 2 if gated else n
    if x.numel() != k or not x.is_contiguous() or not weight.is_contiguous():
        raise ValueError(f"gemv: one contiguous row of {k}, not {tuple(x.shape)}")
    if (scale is None) == (weight.element_size() == 1):
        raise ValueError("gemv: int8 and fp8 weights have a scale, others have none")
    if out is None:
        out = torch.empty((1, outputs), dtype=x.dtype, device=x.device)
    c = config or default_config(outputs, k, weight.element_size(), gated=gated)
    block_k = min(c.block_k, triton.next_power_of_2(k))
    with_pdl = pdl(x)
    norm_weight, eps = norm or (x, 0.0)
    _gemv_kernel[(triton.cdiv(outputs, c.rows),)](
        x,
        weight,
        x if scale is None else scale,
        norm_weight,
        x if residual is None else residual,
        x if bias is None else bias,
        out,
        eps,
        outputs,
        K=k,
        ROWS=c.rows,
        BLOCK_K=block_k,
        TAIL=triton.next_power_of_2(k % block_k),
        GATED=gated,
        SCALE=scale is not None,
        NORM=norm is not None,
        RESIDUAL=residual is not None,
        BIAS=bias is not None,
        ASM=x.is_cuda,
        PDL=with_pdl,
        num_warps=c.num_warps,
        launch_pdl=with_pdl,
    )
    return out


def gemv_reference(
    x: Tensor,
    weight: Tensor,
    *,
    scale: Tensor | None = None,
    norm: tuple[Tensor, float] | None = None,
    residual: Tensor | None = None,
    gated: bool = False,
    bias: Tensor | None = None,
) -> Tensor:
    """The same in float64."""
    row = x.double().view(1, -1)
    if norm is not None:
        row = row * torch.rsqrt(row.square().mean() + norm[1]) * norm[0].double()
    product = row @ weight.double().T
    if scale is not None:
        product = product * scale.double()
    if bias is not None:
        product = product + bias.double()
    if gated:
        gate, up = product.chunk(2, dim=1)
        product = torch.nn.functional.silu(gate) * up
    return product if residual is None else product + residual.double().view(1, -1)


@triton.jit
def _fp32_of(w, ASM: tl.constexpr):
    if ASM and w.dtype == tl.int8:
        # byte b of the word ^ 0x80 into the low mantissa of 2^23, minus 2^23 + 128
        return tl.inline_asm_elementwise(
            """
            {
            .reg .b32 u, a, b, c, d;
            xor.b32 u, $4, 0x80808080;
            prmt.b32 a, u, 0x4B000000, 0x7440;
            prmt.b32 b, u, 0x4B000000, 0x7441;
            prmt.b32 c, u, 0x4B000000, 0x7442;
            prmt.b32 d, u, 0x4B000000, 0x7443;
            sub.rn.f32 $0, a, 0f4B000080;
            sub.rn.f32 $1, b, 0f4B000080;
            sub.rn.f32 $2, c, 0f4B000080;
            sub.rn.f32 $3, d, 0f4B000080;
            }
            """,
            "=f,=f,=f,=f,r",
            [w],
            dtype=tl.float32,
            is_pure=True,
            pack=4,
        )
    return w.to(tl.float32)


@triton.jit
def _sums(acc):
    """One number of each tile of a tuple."""
    totals = ()
    for s in tl.static_range(len(acc)):
        totals = totals + (tl.sum(acc[s]),)
    return totals


@triton.jit
def _load_rows(rows, at, mask, OTHER: tl.constexpr):
    tiles = ()
    for s in tl.static_range(len(rows)):
        if rows[s].dtype.element_ty == tl.float8e4nv:  # masked as bytes: the interpreter knows no fp8 zero
            row = rows[s].to(tl.pointer_type(tl.int8))
            tile = tl.load(row + at, mask=mask, other=OTHER, eviction_policy="evict_first")
            tile = tile.to(tl.float8e4nv, bitcast=True)
        else:
            tile = tl.load(rows[s] + at, mask=mask, other=OTHER, eviction_policy="evict_first")
        tiles = tiles + (tile,)
    return tiles


@triton.jit
def _multiply_add(acc, tiles, xs, ASM: tl.constexpr):
    sums = ()
    for s in tl.static_range(len(acc)):
        sums = sums + (acc[s] + _fp32_of(tiles[s], ASM) * xs,)
    return sums


@triton.jit
def _gemv_kernel(
    x,
    weight,
    scale,
    norm_weight,
    residual,
    bias,
    out,
    eps,
    N,
    K: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_K: tl.constexpr,
    TAIL: tl.constexpr,
    GATED: tl.constexpr,
    SCALE: tl.constexpr,
    NORM: tl.constexpr,
    RESIDUAL: tl.constexpr,
    BIAS: tl.constexpr,
    ASM: tl.constexpr,
    PDL: tl.constexpr,
):
    """Tiles are one-dimensional, a tuple of them a tile of several rows: weights and x then share one register layout
    (a 2D tile of 8-bit weights met x through shared memory)."""
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
    FULL: tl.constexpr = K // BLOCK_K
    REST: tl.constexpr = K % BLOCK_K
    STREAMS: tl.constexpr = 2 * ROWS if GATED else ROWS
    first_row = tl.program_id(0) * ROWS
    w_rows = ()
    for s in tl.static_range(STREAMS):
        # the last program's spare rows repeat row N - 1: no mask on the weights; the up rows follow the N gates
        row = tl.minimum(first_row + s % ROWS, N - 1) + (s // ROWS) * N
        w_rows = w_rows + (weight + row.to(tl.int64) * K,)
    k = tl.arange(0, BLOCK_K)

    # weights, which no kernel writes, are on their way before the kernel ahead has ended
    tiles = _load_rows(w_rows, k, None if FULL else k < K, None if FULL else 0)
    if PDL:
        tl.extra.cuda.gdc_wait()

    acc = (tl.zeros((BLOCK_K,), tl.float32),) * STREAMS
    squares = tl.zeros((BLOCK_K,), tl.float32)
    for tile in tl.static_range(FULL):
        at = tile * BLOCK_K + k
        if tile > 0:
            tiles = _load_rows(w_rows, at, None, None)
        xs = tl.load(x + at).to(tl.float32)
        if NORM:
            squares += xs * xs
            xs *= tl.load(norm_weight + at).to(tl.float32)
        acc = _multiply_add(acc, tiles, xs, ASM)
    if FULL == 0:
        xs = tl.load(x + k, mask=k < K, other=0.0).to(tl.float32)
        if NORM:
            squares += xs * xs
            xs *= tl.load(norm_weight + k, mask=k < K, other=0.0).to(tl.float32)
        acc = _multiply_add(acc, tiles, xs, ASM)
    totals = _sums(acc)
    if NORM:
        squares_total = tl.sum(squares)
    if FULL > 0 and REST > 0:
        tail = tl.arange(0, TAIL)
        at = FULL * BLOCK_K + tail
        mask = None if REST == TAIL else tail < REST
        xs = tl.load(x + at, mask=mask, other=None if REST == TAIL else 0.0).to(tl.float32)
        if NORM:
            squares_total += tl.sum(xs * xs)
            xs *= tl.load(norm_weight + at, mask=mask, other=None if REST == TAIL else 0.0).to(tl.float32)
        tiles = _load_rows(w_rows, at, mask, None if REST == TAIL else 0)
        tail_acc = _multiply_add((tl.zeros((TAIL,), tl.float32),) * STREAMS, tiles, xs, ASM)
        tail_totals = _sums(tail_acc)
        whole = ()
        for s in tl.static_range(STREAMS):
            whole = whole + (totals[s] + tail_totals[s],)
        totals = whole

    for r in tl.static_range(ROWS):
        row = tl.minimum(first_row + r, N - 1)
        total = totals[r]
        if NORM:
            inverse_rms = tl.rsqrt(squares_total / K + eps)
            total *= inverse_rms
        if SCALE:
            total *= tl.load(scale + row)
        if BIAS:
            total += tl.load(bias + row)
        if GATED:
            up = totals[ROWS + r]
            if NORM:
                up *= inverse_rms
            if SCALE:
                up *= tl.load(scale + N + row)
            if BIAS:
                up += tl.load(bias + N + row)
            total = total * tl.sigmoid(total) * up
        if RESIDUAL:
            total += tl.load(residual + row, mask=first_row + r < N).to(tl.float32)
        tl.store(out + row, total, mask=first_row + r < N)
