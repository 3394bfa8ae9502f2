"""Which kernel multiplies by 4-bit weights at which number of rows; knows no kernel's inside."""

from typing import Literal

from torch import Tensor
from torch.nn import functional

from kernels.gpu.four_bit_dequantize import dequantize
from kernels.gpu.four_bit_gemm import four_bit_gemm
from kernels.gpu.four_bit_gemv import four_bit_gemv
from kernels.gpu.four_bit_layout import PackedFourBit

LARGEST_FUSED = 256
"""Rows above which bf16 products by cuBLAS win back the decoding of the whole weight"""


def path_of(rows: int) -> Literal["gemv", "gemm", "dequantize"]:
    if rows == 1:
        return "gemv"
    return "gemm" if rows <= LARGEST_FUSED else "dequantize"


def four_bit_matmul(x: Tensor, packed: PackedFourBit, out: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
    """[M, K] bf16 -> [M, N] bf16; bias [N] fp32."""
    path = path_of(x.shape[0])
    if path == "gemv":
        return four_bit_gemv(x, packed, out, bias=bias)
    if path == "gemm":
        return four_bit_gemm(x, packed, out, bias)
    if packed.input_order is not None:
        x = x.index_select(1, packed.input_order)
    product = functional.linear(x, dequantize(packed), None if bias is None else bias.to(x.dtype))
    return product if out is None else out.copy_(product)
