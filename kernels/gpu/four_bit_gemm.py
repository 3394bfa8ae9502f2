"""Several rows times 4-bit weights, [M, K] x [N, K]^T: which kernel and tiles, and a kernel for any card; no layer.

On Hopper four_bit_gemm_hopper does it. The kernel here is for other cards and for the interpreter: it reads every word
once too and takes one product of K = 16 per nibble position.
"""

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.gpu import launch
from kernels.gpu.four_bit_decode import nibble, value
from kernels.gpu.four_bit_layout import PackedFourBit, constants_of


@dataclass(frozen=True, slots=True, kw_only=True)
class GemmConfig:
    """Of Hopper's kernel."""

    n: int
    """Output features of a tile, 64 to 256 by powers of two, at least 16 * warps"""
    m: int
    """Rows of x of a tile, 8 to 256 by powers of two"""
    split: int
    """Programs that share K"""
    warps: int
    """4 or 8"""
    stages: int
    """Buffers of 128 K each, at least 3; copies run stages - 2 steps ahead"""


def default_config(m: int, n: int, k: int) -> GemmConfig:
    """Twice as many programs as an H100 has multiprocessors where K allows; a word is decoded once for 256 rows of x,
    or once for each 128 where the tiles would leave multiprocessors idle."""
    tile_m = min(256, max(8, triton.next_power_of_2(m)))
    if tile_m == 256 and n < 128 * 132:
        tile_m = 128
    n_tile, programs, most = (128, 132, 4) if tile_m > 64 else (64, 2 * 132, 8 if tile_m <= 32 else 4)
    tiles, split = -(-n // n_tile) * -(-m // tile_m), 1
    while tiles * split * 2 <= programs * 1.1 and split < most and k // 128 >= 8 * split:
        split *= 2
    stages = {256: 3, 128: 4, 64: 4}.get(tile_m, 6)
    return GemmConfig(n=n_tile, m=tile_m, split=split, warps=8 if tile_m > 64 else 4, stages=stages)


def four_bit_gemm(
    x: Tensor,
    packed: PackedFourBit,
    out: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    config: GemmConfig | None = None,
) -> Tensor:
    """[M, K] bf16, contiguous -> [M, N] bf16; bias [N] fp32.

    Raises ValueError for tiles that do not divide the padded rows of the weight.
    """
    if packed.input_order is not None:
        x = x.index_select(1, packed.input_order)
    m, k = x.shape
    n = packed.out_features
    out = torch.empty(m, n, dtype=x.dtype, device=x.device) if out is None else out
    constants: dict[str, Any] = {**constants_of(packed), "BIAS": bias is not None}
    sizes = (m, n, k, packed.blocks, packed.scales.shape[1], max(1, packed.group_size // 128))
    if not (x.is_cuda and k % 16 == 0 and _is_hopper(x.device.index)):
        tile = 16 if m <= 16 else 64
        _gemm[(triton.cdiv(n, 32), triton.cdiv(m, tile))](
            x, packed.words, packed.scales, packed.zeros, bias, out, *sizes[:3], *sizes[4:], **constants,
            BLOCKS=packed.blocks, BN=32, BM=tile, NARROW=x.is_cuda, num_warps=4,
        )  # fmt: skip
        return out
    from kernels.gpu.four_bit_gemm_hopper import gemm_hopper

    config = config or default_config(m, n, k)
    if packed.rows % config.n:
        raise ValueError(f"tiles of {config.n} rows do not divide {packed.rows}")
    tiles_m = triton.cdiv(m, config.m)
    split = config.split
    parts = torch.empty(split, m, n, dtype=torch.float32, device=x.device) if split > 1 else None
    pdl = launch.pdl(x)
    gemm_hopper[(triton.cdiv(n, config.n), split, tiles_m)](
        x,
        packed.words,
        packed.scales,
        packed.zeros,
        packed.table,
        bias,
        out,
        parts,
        packed.arrivals if split > 1 else None,
        *sizes,
        **constants,
        BN=config.n,
        BM=config.m,
        STAGES=config.stages,
        SPLIT=split,
        PDL=pdl,
        num_warps=config.warps,
        launch_pdl=pdl,
    )
    return out


def four_bit_gemm_reference(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The same of a dequantised weight [N, K], in float64."""
    product = x.double() @ weight.double().T
    return product if bias is None else product + bias.double()


@cache
def _is_hopper(device: int) -> bool:
    return torch.cuda.get_device_capability(device) == (9, 0)


@triton.jit
def _gemm(
    x, words, scales, zeros, bias, out, M, N, K, groups, group_blocks,
    NF4: tl.constexpr, ZEROS: tl.constexpr, GROUP: tl.constexpr, BIAS: tl.constexpr,
    BLOCKS: tl.constexpr, BN: tl.constexpr, BM: tl.constexpr,
    NARROW: tl.constexpr,
):  # fmt: skip
    n = tl.program_id(0) * BN + tl.arange(0, BN)
    m = tl.program_id(1) * BM + tl.arange(0, BM)
    word = tl.arange(0, 16)
    t = word // 4
    u = word % 4
    held = tl.minimum(n, N - 1).to(tl.int64)
    acc = tl.zeros([BN, BM], tl.float32)
    for block in range(BLOCKS):
        tile = tl.load(words + held[:, None] * (BLOCKS * 16) + (block * 16 + word)[None, :])
        group = word * 0 + block // group_blocks if GROUP == 128 else block * (128 // GROUP) + u * 32 // GROUP
        at = held[:, None] * groups + group[None, :]
        scale = tl.load(scales + at).to(tl.float32)
        zero = tl.zeros([BN, 16], tl.float32)
        if ZEROS:
            zero = tl.load(zeros + at).to(tl.float32)
        for p in tl.static_range(4):
            for e in tl.static_range(2):
                k = block * 128 + 32 * u + 8 * p + 2 * t + e
                inside = (k < K)[:, None] & (m < M)[None, :]
                columns = tl.load(x + m.to(tl.int64)[None, :] * K + k[:, None], mask=inside, other=0.0)
                weights = (value(nibble(tile, p, e, NF4), NF4) - zero) * scale
                if NARROW:
                    acc = tl.dot(weights.to(columns.dtype), columns, acc)
                else:  # the interpreter multiplies the bits of bf16
                    acc = tl.dot(weights, columns.to(tl.float32), acc)
    if BIAS:
        acc += tl.load(bias + n, mask=n < N, other=0.0)[:, None]
    at = m.to(tl.int64)[None, :] * N + n[:, None]
    tl.store(out + at, acc.to(out.dtype.element_ty), mask=(n < N)[:, None] & (m < M)[None, :])
