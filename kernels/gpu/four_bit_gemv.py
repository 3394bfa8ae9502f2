"""One row times 4-bit weights, the norm before it and the gate or the residual after it; knows no layer.

A program takes ROWS output rows; a thread holds 16 bytes (four words, u = 0..3) of each and the 32 activations they
meet, which stay in registers over the rows. Weights of the first tile are asked for before the kernel waits for the
one before it. The zero-point is folded: sum((q - zero) x) = sum((q - 8) x) - (zero - 8) sum(x).
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional

from kernels.gpu import launch
from kernels.gpu.four_bit_decode import INT4_UNIT, NF4_UNIT, fp16_pair, load_table, one_word, two_words
from kernels.gpu.four_bit_layout import PackedFourBit, constants_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Norm:
    """The product is of rms_norm(x) * weight."""

    weight: Tensor
    """[K] fp32"""
    eps: float


@dataclass(frozen=True, slots=True, kw_only=True)
class GemvConfig:
    rows: int
    """Output rows of a program"""
    quads: int
    """Sixteen-byte pieces of a row in a tile; 32 * quads of K"""
    warps: int


def default_config(n: int, k: int, code: str, *, gated: bool = False) -> GemvConfig:
    """What was fastest on an H100 at the shapes of Llama-3.1-8B, in tiles that divide the row where one does."""
    row_quads = -(-k // 128) * 4
    sizes = (64, 32) if gated else (128, 64, 32)
    quads = next((q for q in sizes if row_quads % q == 0), min(64, triton.next_power_of_2(row_quads)))
    rows = 4 if gated or (code == "nf4" and k > 8192) else 8
    return GemvConfig(rows=rows, quads=quads, warps=max(1, quads // 32))


def four_bit_gemv(
    x: Tensor,
    packed: PackedFourBit,
    out: Tensor | None = None,
    *,
    norm: Norm | None = None,
    residual: Tensor | None = None,
    gated: bool = False,
    bias: Tensor | None = None,
    config: GemvConfig | None = None,
) -> Tensor:
    """x [1, K] bf16 -> [1, N] bf16; gated: rows 0..N/2-1 are gates, the others what they gate, [1, N/2] silu(g) * u.

    residual [1, N] bf16 is added and may be `out`; bias [N] fp32. Raises ValueError for more than one row of x.
    """
    if x.shape[0] != 1 or x.dtype != torch.bfloat16:
        raise ValueError(f"one row of bf16, not {tuple(x.shape)} {x.dtype}")
    n = packed.out_features // 2 if gated else packed.out_features
    out = torch.empty(1, n, dtype=x.dtype, device=x.device) if out is None else out
    config = config or default_config(packed.out_features, packed.in_features, packed.code, gated=gated)
    pdl = launch.pdl(x)
    row_quads = packed.blocks * 4
    _gemv[(triton.cdiv(n, config.rows),)](
        x.view(torch.int32),
        x,
        packed.words,
        packed.scales,
        packed.zeros,
        packed.table,
        packed.input_order,
        norm.weight if norm else None,
        bias,
        residual,
        out,
        n,
        packed.in_features,
        row_quads,
        packed.scales.shape[1],
        max(1, packed.group_size // 128),
        norm.eps if norm else 0.0,
        **constants_of(packed),
        ROWS=config.rows,
        QUADS=config.quads,
        TILES=triton.cdiv(row_quads, config.quads),
        EVEN=packed.in_features % (32 * config.quads) == 0,
        NORM=norm is not None,
        ORDER=packed.input_order is not None,
        GATED=gated,
        BIAS=bias is not None,
        RESIDUAL=residual is not None,
        ASM=x.is_cuda,
        PDL=pdl,
        num_warps=config.warps,
        launch_pdl=pdl,
    )
    return out


def four_bit_gemv_reference(
    x: Tensor,
    weight: Tensor,
    *,
    norm: Norm | None = None,
    residual: Tensor | None = None,
    gated: bool = False,
    bias: Tensor | None = None,
) -> Tensor:
    """The same of a dequantised weight [N, K], in float64."""
    x, weight = x.double(), weight.double()
    if norm is not None:
        x = x * torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + norm.eps) * norm.weight.double()
    product = x @ weight.T
    if bias is not None:
        product = product + bias.double()
    if gated:
        gate, up = product.chunk(2, dim=-1)
        product = functional.silu(gate) * up
    return product if residual is None else product + residual.double()


@triton.jit
def _activations(
    x32, x16, order, norm_weight, quad, K, u: tl.constexpr,
    NORM: tl.constexpr, ORDER: tl.constexpr, EVEN: tl.constexpr, ASM: tl.constexpr,
):  # fmt: skip
    """What word u of the quads meets, k = 32u + 8p + 2t + (0, 1): four fp16 pairs, their sum, the sum of squares."""
    x0, s0, r0 = _pair(x32, x16, order, norm_weight, quad, K, u, 0, NORM, ORDER, EVEN, ASM)
    x1, s1, r1 = _pair(x32, x16, order, norm_weight, quad, K, u, 1, NORM, ORDER, EVEN, ASM)
    x2, s2, r2 = _pair(x32, x16, order, norm_weight, quad, K, u, 2, NORM, ORDER, EVEN, ASM)
    x3, s3, r3 = _pair(x32, x16, order, norm_weight, quad, K, u, 3, NORM, ORDER, EVEN, ASM)
    return (x0, x1, x2, x3), (s0 + s1) + (s2 + s3), (r0 + r1) + (r2 + r3)


@triton.jit
def _pair(
    x32, x16, order, norm_weight, quad, K, u: tl.constexpr, p: tl.constexpr,
    NORM: tl.constexpr, ORDER: tl.constexpr, EVEN: tl.constexpr, ASM: tl.constexpr,
):  # fmt: skip
    pair = quad // 4 * 64 + quad % 4 + (16 * u + 4 * p)
    inside = 2 * pair < K
    first = 2 * pair
    second = first + 1
    if ORDER:
        first = tl.load(order + first, mask=inside, other=0)
        second = tl.load(order + second, mask=inside, other=0)
        low = tl.load(x16 + first, mask=inside, other=0.0).to(tl.float32)
        high = tl.load(x16 + second, mask=inside, other=0.0).to(tl.float32)
    else:
        bits = tl.load(x32 + pair) if EVEN else tl.load(x32 + pair, mask=inside, other=0)
        low = (bits << 16).to(tl.float32, bitcast=True)
        high = (bits & -65536).to(tl.float32, bitcast=True)
    squares = low * low + high * high
    if NORM:
        low *= tl.load(norm_weight + first, mask=inside, other=0.0)
        high *= tl.load(norm_weight + second, mask=inside, other=0.0)
    return fp16_pair(low, high, ASM)[None, :], low + high, squares


@triton.jit
def _words(words, row, first, row_words, QUADS: tl.constexpr, EVEN: tl.constexpr):
    """[ROWS, 4 * QUADS], 16 bytes a thread, read once: no line of them is worth its place in the caches."""
    word = first + tl.arange(0, 4 * QUADS)
    at = row.to(tl.int64)[:, None] * row_words + word[None, :]
    if EVEN:
        return tl.load(words + at, eviction_policy="evict_first")
    return tl.load(words + at, mask=(word < row_words)[None, :], other=0, eviction_policy="evict_first")


@triton.jit
def _group_scales(
    row, quad, row_quads, group_blocks, groups, scales, zeros,
    GROUP: tl.constexpr, ZEROS: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """Scale and zero [ROWS, QUADS] of each group that a thread's sixteen bytes of a row lie in, one after the other."""
    PARTS: tl.constexpr = 128 // GROUP
    block = quad // 4
    inside = quad < row_quads
    found = ()
    for part in tl.static_range(PARTS):
        group = block // group_blocks if PARTS == 1 else PARTS * block + part
        at = (row * groups)[:, None] + group[None, :]
        scale = tl.load(scales + at) if EVEN else tl.load(scales + at, mask=inside[None, :], other=0.0)
        zero = scale
        if ZEROS:
            zero = tl.load(zeros + at) if EVEN else tl.load(zeros + at, mask=inside[None, :], other=0)
        found = found + (scale, zero)
    return found


@triton.jit
def _scaled(part, xsum, scale, zero, UNIT: tl.constexpr, ZEROS: tl.constexpr):
    """[ROWS, QUADS] sums over (parts of) groups times the groups' scales, the zero-point taken out."""
    if ZEROS:
        return (part * UNIT - zero.to(tl.float32) * xsum[None, :]) * scale.to(tl.float32)
    return part * scale.to(tl.float32)


@triton.jit
def _row_sums(
    tile, scale, table, x, xsum,
    ROWS: tl.constexpr, QUADS: tl.constexpr, NF4: tl.constexpr, GROUP: tl.constexpr, ZEROS: tl.constexpr,
    UNIT: tl.constexpr, ASM: tl.constexpr,
):  # fmt: skip
    """[ROWS, QUADS] fp32: what a thread's sixteen bytes of a row add."""
    even, odd = tl.split(tl.reshape(tile, [ROWS, QUADS, 2, 2]))
    w0, w2 = tl.split(even)
    w1, w3 = tl.split(odd)
    if GROUP == 32:
        total = _scaled(one_word(w0, x[0], table, NF4, ASM), xsum[0], scale[0], scale[1], UNIT, ZEROS)
        total += _scaled(one_word(w1, x[1], table, NF4, ASM), xsum[1], scale[2], scale[3], UNIT, ZEROS)
        total += _scaled(one_word(w2, x[2], table, NF4, ASM), xsum[2], scale[4], scale[5], UNIT, ZEROS)
        total += _scaled(one_word(w3, x[3], table, NF4, ASM), xsum[3], scale[6], scale[7], UNIT, ZEROS)
        return total
    left = two_words(w0, w1, x[0], x[1], table, NF4, ASM)
    right = two_words(w2, w3, x[2], x[3], table, NF4, ASM)
    if GROUP == 64:
        total = _scaled(left, xsum[0] + xsum[1], scale[0], scale[1], UNIT, ZEROS)
        return total + _scaled(right, xsum[2] + xsum[3], scale[2], scale[3], UNIT, ZEROS)
    return _scaled(left + right, (xsum[0] + xsum[1]) + (xsum[2] + xsum[3]), scale[0], scale[1], UNIT, ZEROS)


@triton.jit
def _gemv(
    x32, x16, words, scales, zeros, registers, order, norm_weight, bias, residual, out,
    N, K, row_quads, groups, group_blocks, eps,
    NF4: tl.constexpr, ZEROS: tl.constexpr, GROUP: tl.constexpr,
    ROWS: tl.constexpr, QUADS: tl.constexpr, TILES: tl.constexpr, EVEN: tl.constexpr,
    NORM: tl.constexpr, ORDER: tl.constexpr, GATED: tl.constexpr, BIAS: tl.constexpr, RESIDUAL: tl.constexpr,
    ASM: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    UNIT: tl.constexpr = NF4_UNIT if NF4 else INT4_UNIT
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    lane = tl.arange(0, QUADS)
    held = tl.minimum(row, N - 1)  # past N there may be no padding left
    row_words = row_quads * 4
    tile = _words(words, held, 0, row_words, QUADS, EVEN)
    scale = _group_scales(held, lane, row_quads, group_blocks, groups, scales, zeros, GROUP, ZEROS, EVEN)
    if GATED:
        tile_up = _words(words, held + N, 0, row_words, QUADS, EVEN)
        scale_up = _group_scales(held + N, lane, row_quads, group_blocks, groups, scales, zeros, GROUP, ZEROS, EVEN)
    table = load_table(registers, 0, (lane % 32)[None, :], NF4)
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    total = tl.zeros([ROWS, QUADS], tl.float32)
    total_up = tl.zeros([ROWS, QUADS], tl.float32)
    squares = tl.zeros([QUADS], tl.float32)
    for i in tl.static_range(TILES):
        quad = lane + i * QUADS
        x0, s0, r0 = _activations(x32, x16, order, norm_weight, quad, K, 0, NORM, ORDER, EVEN, ASM)
        x1, s1, r1 = _activations(x32, x16, order, norm_weight, quad, K, 1, NORM, ORDER, EVEN, ASM)
        x2, s2, r2 = _activations(x32, x16, order, norm_weight, quad, K, 2, NORM, ORDER, EVEN, ASM)
        x3, s3, r3 = _activations(x32, x16, order, norm_weight, quad, K, 3, NORM, ORDER, EVEN, ASM)
        x = (x0, x1, x2, x3)
        xsum = (s0, s1, s2, s3)
        squares += (r0 + r1) + (r2 + r3)
        now, now_scale = tile, scale
        if GATED:
            now_up, now_scale_up = tile_up, scale_up
        if i + 1 < TILES:  # the next tile's bytes are on their way while this one's are multiplied
            following = quad + QUADS
            tile = _words(words, held, (i + 1) * QUADS * 4, row_words, QUADS, EVEN)
            scale = _group_scales(
                held, following, row_quads, group_blocks, groups, scales, zeros, GROUP, ZEROS, EVEN
            )  # fmt: skip
            if GATED:
                tile_up = _words(words, held + N, (i + 1) * QUADS * 4, row_words, QUADS, EVEN)
                scale_up = _group_scales(
                    held + N, following, row_quads, group_blocks, groups, scales, zeros, GROUP, ZEROS, EVEN
                )  # fmt: skip
        total += _row_sums(now, now_scale, table, x, xsum, ROWS, QUADS, NF4, GROUP, ZEROS, UNIT, ASM)
        if GATED:
            total_up += _row_sums(now_up, now_scale_up, table, x, xsum, ROWS, QUADS, NF4, GROUP, ZEROS, UNIT, ASM)
    factor = 1.0 if ZEROS else UNIT
    if NORM:
        factor = factor * tl.rsqrt(tl.sum(squares, axis=0) / K + eps)
    result = tl.sum(total, axis=1) * factor
    ok = row < N
    if BIAS:
        result += tl.load(bias + row, mask=ok, other=0.0)
    if GATED:
        up = tl.sum(total_up, axis=1) * factor
        if BIAS:
            up += tl.load(bias + N + row, mask=ok, other=0.0)
        result = result / (1.0 + tl.exp(-result)) * up
    if RESIDUAL:
        result += tl.load(residual + row, mask=ok, other=0.0).to(tl.float32)
    tl.store(out + row, result.to(out.dtype.element_ty), mask=ok)
