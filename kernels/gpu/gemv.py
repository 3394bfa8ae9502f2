"""y = x @ W.T for one row x, at the speed the weights can be read; it does not know which layer it is.

A program takes a few rows of W and walks K in tiles, several of which are in flight before the first is used: fp32 sums
a thread, one reduction at the end. It sees all of x, so an RMS norm of x costs a sum of squares beside the products and
no launch. Rows of W are read once and evicted first: x, its norm weights and nothing else stay in the L1. Beats cuBLAS
on an H100 at every shape of Llama-3.1-8B.

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
from kernels.gpu.tuning import tuned_config

FP8 = (torch.float8_e4m3fn,)


@dataclass(frozen=True, slots=True, kw_only=True)
class GemvConfig:
    rows: int
    """of W a program takes, 1, 2 or 4 (pairs of rows where the product is gated)"""
    block_k: int
    num_warps: int
    tiles_ahead: int = 1
    """Tiles of rows x block_k loaded before the first is used; those before the wait for the kernel ahead, too"""


def default_config(n: int, k: int, weight_bytes: int, *, gated: bool = False) -> GemvConfig:
    """`n` outputs; 64 bytes of weights a thread in flight, as far as K has them."""
    rows = 2 if weight_bytes == 1 and not gated else 1
    block_k = 1024 if weight_bytes == 4 else 2048
    at_once = rows * (2 if gated else 1) * block_k * weight_bytes // 128
    return GemvConfig(rows=rows, block_k=block_k, num_warps=4, tiles_ahead=max(1, 64 // at_once))


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
    norm: (weight [K] of any float dtype, eps): the product is of rms_norm(x). residual: [1, N], added; may be `out`.
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
    weight_bytes = weight.element_size()
    c = (
        config
        or tuned_config(
            "gemv", GemvConfig, x, n=outputs, k=k, weight_bytes=weight_bytes, fp8=weight.dtype in FP8, gated=gated
        )
        or default_config(outputs, k, weight_bytes, gated=gated)
    )
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
        TAIL=triton.next_power_of_2(k % block_k or 1),
        AHEAD=c.tiles_ahead,
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
def _thread_sums(values, WIDTH: tl.constexpr):
    """[B] -> [B / WIDTH]: neighbours, which one thread holds, so that an accumulator is a register and not a tile."""
    return tl.sum(tl.reshape(values, (values.shape[0] // WIDTH, WIDTH)), axis=1)


@triton.jit
def _products(tiles, FIRST: tl.constexpr, STREAMS: tl.constexpr, xs, WIDTH: tl.constexpr, ASM: tl.constexpr):
    sums = ()
    for s in tl.static_range(STREAMS):
        sums = sums + (_thread_sums(_fp32_of(tiles[FIRST + s], ASM) * xs, WIDTH),)
    return sums


@triton.jit
def _added(sums, more):
    total = ()
    for s in tl.static_range(len(sums)):
        total = total + (sums[s] + more[s],)
    return total


@triton.jit
def _totals(sums, FIRST: tl.constexpr, ROWS: tl.constexpr):
    """[ROWS]: the sums of ROWS tiles, reduced together: one exchange between the warps."""
    if ROWS == 1:
        stacked = sums[FIRST][:, None]
    elif ROWS == 2:
        stacked = tl.join(sums[FIRST], sums[FIRST + 1])
    else:
        even = tl.join(sums[FIRST], sums[FIRST + 2])
        odd = tl.join(sums[FIRST + 1], sums[FIRST + 3])
        stacked = tl.reshape(tl.join(even, odd), (sums[FIRST].shape[0], 4))
    return tl.sum(stacked, axis=0)


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
    AHEAD: tl.constexpr,
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
    FULL: tl.constexpr = K // BLOCK_K
    REST: tl.constexpr = K % BLOCK_K
    STREAMS: tl.constexpr = 2 * ROWS if GATED else ROWS
    WIDTH: tl.constexpr = 128 // weight.dtype.element_ty.primitive_bitwidth  # of a 16-byte load
    TAIL_WIDTH: tl.constexpr = min(WIDTH, TAIL)
    TAIL_MASK: tl.constexpr = REST != TAIL
    first_row = tl.program_id(0) * ROWS
    w_rows = ()
    for s in tl.static_range(STREAMS):
        # the last program's spare rows repeat row N - 1: no mask on the weights; the up rows follow the N gates
        row = tl.minimum(first_row + s % ROWS, N - 1) + (s // ROWS) * N
        w_rows = w_rows + (weight + row.to(tl.int64) * K,)
    k = tl.arange(0, BLOCK_K)
    tail = tl.arange(0, TAIL)
    in_rest = tail < REST if TAIL_MASK else None

    # weights and constants, which no kernel writes, are on their way before the kernel ahead has ended
    tiles = ()
    for tile in tl.static_range(min(AHEAD, FULL)):
        tiles = tiles + _load_rows(w_rows, tile * BLOCK_K + k, None, None)
    if REST > 0 and AHEAD > FULL:
        tail_tiles = _load_rows(w_rows, FULL * BLOCK_K + tail, in_rest, 0 if TAIL_MASK else None)
    each = first_row + tl.arange(0, ROWS)
    inside = each < N
    constant = tl.minimum(each, N - 1)
    if SCALE:
        factor = tl.load(scale + constant)
        if GATED:
            up_factor = tl.load(scale + N + constant)
    if BIAS:
        addend = tl.load(bias + constant)
        if GATED:
            up_addend = tl.load(bias + N + constant)
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    if RESIDUAL:
        added = tl.load(residual + each, mask=inside, other=0.0).to(tl.float32)
        # without it the compiler moves the load behind the products, and every program ends with its latency
        tl.debug_barrier()

    acc = (tl.zeros((BLOCK_K // WIDTH,), tl.float32),) * STREAMS
    squares = tl.zeros((BLOCK_K // WIDTH,), tl.float32)
    for tile in tl.static_range(FULL):
        at = tile * BLOCK_K + k
        if tile + AHEAD < FULL:
            tiles = tiles + _load_rows(w_rows, at + AHEAD * BLOCK_K, None, None)
        if tile + AHEAD == FULL and REST > 0:
            tail_tiles = _load_rows(w_rows, FULL * BLOCK_K + tail, in_rest, 0 if TAIL_MASK else None)
        xs = tl.load(x + at).to(tl.float32)
        if NORM:
            squares += _thread_sums(xs * xs, WIDTH)
            xs *= tl.load(norm_weight + at).to(tl.float32)
        products = _products(tiles, tile * STREAMS, STREAMS, xs, WIDTH, ASM)
        acc = _added(acc, products)
    if FULL > 0:
        total = _totals(acc, 0, ROWS)
        if GATED:
            up = _totals(acc, ROWS, ROWS)
        if NORM:
            squares_total = tl.sum(squares)
    if REST > 0:
        at = FULL * BLOCK_K + tail
        xs = tl.load(x + at, mask=in_rest, other=0.0 if TAIL_MASK else None).to(tl.float32)
        if NORM:
            square = tl.sum(xs * xs)
            squares_total = square if FULL == 0 else squares_total + square
            xs *= tl.load(norm_weight + at, mask=in_rest, other=0.0 if TAIL_MASK else None).to(tl.float32)
        tail_acc = _products(tail_tiles, 0, STREAMS, xs, TAIL_WIDTH, ASM)
        tail_total = _totals(tail_acc, 0, ROWS)
        total = tail_total if FULL == 0 else total + tail_total
        if GATED:
            tail_up = _totals(tail_acc, ROWS, ROWS)
            up = tail_up if FULL == 0 else up + tail_up

    if NORM:
        inverse_rms = tl.rsqrt(squares_total / K + eps)
        total *= inverse_rms
    if SCALE:
        total *= factor
    if BIAS:
        total += addend
    if GATED:
        if NORM:
            up *= inverse_rms
        if SCALE:
            up *= up_factor
        if BIAS:
            up += up_addend
        total = total * tl.sigmoid(total) * up
    if RESIDUAL:
        total += added
    tl.store(out + each, total, mask=inside)
