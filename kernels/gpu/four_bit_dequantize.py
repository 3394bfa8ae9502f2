"""4-bit weights to bf16, near the speed of memory, for products with so many rows that cuBLAS wins; knows no layer."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.gpu.four_bit_decode import nibble, value
from kernels.gpu.four_bit_layout import WORDS, PackedFourBit, constants_of

_ROWS = 8


def dequantize(packed: PackedFourBit, out: Tensor | None = None) -> Tensor:
    """[N, K] bf16, columns in the order of the words; input_order is not undone."""
    n, k = packed.out_features, packed.in_features
    out = torch.empty(n, k, dtype=torch.bfloat16, device=packed.words.device) if out is None else out
    constants: dict[str, Any] = constants_of(packed)
    _dequantize[(triton.cdiv(n, _ROWS), packed.blocks)](
        packed.words,
        packed.scales,
        packed.zeros,
        out,
        n,
        k,
        packed.words.shape[1],
        packed.scales.shape[1],
        max(1, packed.group_size // 128),
        **constants,
        ROWS=_ROWS,
        num_warps=4,
    )
    return out
