"""4-bit weights to bf16, near the speed of memory, for products with so many rows that cuBLAS wins; knows no layer."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.gpu.four_bit_decode import bf16_values, load_table
from kernels.gpu.four_bit_layout import PackedFourBit, constants_of

_ROWS, _BLOCKS = 8, 4


def dequantize(packed: PackedFourBit, out: Tensor | None = None) -> Tensor:
    """[N, K] bf16, columns in the order of the words; input_order is not undone."""
    n, k = packed.out_features, packed.in_features
    out = torch.empty(n, k, dtype=torch.bfloat16, device=packed.words.device) if out is None else out
    constants: dict[str, Any] = constants_of(packed)
    _dequantize[(triton.cdiv(n, _ROWS), triton.cdiv(packed.blocks, _BLOCKS))](
        packed.words,
        packed.scales,
        packed.zeros,
        packed.table,
        out,
        n,
        k,
        packed.words.shape[1],
        packed.scales.shape[1],
        max(1, packed.group_size // 128),
        **constants,
        ROWS=_ROWS,
        BLOCKS=_BLOCKS,
        ASM=packed.words.is_cuda,
        num_warps=4,
    )
    return out


@triton.jit
def _dequantize(
    words, scales, zeros, registers, out, N, K, row_words, groups, group_blocks,
    NF4: tl.constexpr, ZEROS: tl.constexpr, GROUP: tl.constexpr,
    ROWS: tl.constexpr, BLOCKS: tl.constexpr, ASM: tl.constexpr,
):  # fmt: skip
    WORDS: tl.constexpr = 16 * BLOCKS
    n = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    word = tl.program_id(1) * WORDS + tl.arange(0, WORDS)
    held = tl.minimum(n, N - 1).to(tl.int64)
    inside = (word < row_words)[None, :]
    tile = tl.load(words + held[:, None] * row_words + word[None, :], mask=inside, other=0)
    group = word // 16 // group_blocks if GROUP == 128 else word // 16 * (128 // GROUP) + word % 4 * 32 // GROUP
    at = held[:, None] * groups + group[None, :]
    scale = tl.load(scales + at, mask=inside, other=0.0).to(tl.float32)
    zero = tl.zeros([ROWS, WORDS], tl.float32)
    if ZEROS:
        zero = tl.load(zeros + at, mask=inside, other=0).to(tl.float32)
    v = bf16_values(tile, scale, zero, load_table(registers, 8, 0, NF4), NF4, ZEROS, ASM)
    values = tl.join(
        tl.join(tl.join(v[0], v[1]), tl.join(v[2], v[3])), tl.join(tl.join(v[4], v[5]), tl.join(v[6], v[7]))
    )
    # [ROWS, block, t, u, e, p % 2, p / 2] -> [ROWS, block, u, p / 2, p % 2, t, e]
    values = tl.reshape(values, [ROWS, BLOCKS, 4, 4, 2, 2, 2])
    values = tl.reshape(tl.permute(values, (0, 1, 3, 6, 5, 2, 4)), [ROWS, BLOCKS * 128])
    k = tl.program_id(1) * (BLOCKS * 128) + tl.arange(0, BLOCKS * 128)
    tl.store(out + n.to(tl.int64)[:, None] * K + k[None, :], values, mask=(n < N)[:, None] & (k < K)[None, :])
