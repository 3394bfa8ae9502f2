"""x @ weight.T of unquantised weights for any number of rows on a GPU; it does not know which layer it is.

One row is a gemv. A decode batch of bf16 goes through scaled_gemm's tiles (without scales), which read the weights
faster than the library does: cuBLAS takes 86 us for 32 x 28672 x 4096 on an H100 whose memory needs 76. Prompts are the
library's.
"""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from kernels.gpu.gemv import gemv
from kernels.gpu.launch import pdl
from kernels.gpu.scaled_gemm import GemmConfig, scaled_gemm

DensePath = Literal["gemv", "tiles", "library"]
TILED_ROWS = 64


def dense_path(rows: int, *, tiles: bool) -> DensePath:
    """Which product `dense_rows` takes; `tiles`: the types and the card are those that the tiles are made for."""
    if rows == 1:
        return "gemv"
    return "tiles" if tiles and rows <= TILED_ROWS else "library"


def dense_rows(
    x: Tensor,
    weight: Tensor,
    out: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    path: DensePath | None = None,
    config: GemmConfig | None = None,
) -> Tensor:
    """[M, K] @ [N, K].T -> [M, N] in x's dtype, or in out's, which may be fp32; bias [N] fp32.

    x and weight are contiguous and of one dtype, bf16 or fp32. ValueError where the shapes do not fit.
    """
    if path is None:
        tiles = pdl(x) and x.dtype == weight.dtype == torch.bfloat16 and x.shape[1] % 8 == 0  # rows of 16 bytes
        path = dense_path(len(x), tiles=tiles)
    if path == "gemv":
        return gemv(x, weight, out, bias=bias)
    if path == "tiles":
        return scaled_gemm(x, None, weight, None, out, bias=bias, config=config)
    if out is None:
        return functional.linear(x, weight, None if bias is None else bias.to(x.dtype))
    if out.dtype == x.dtype:
        torch.mm(x, weight.T, out=out)
    elif x.is_cuda:
        torch.mm(x, weight.T, out_dtype=out.dtype, out=out)
    else:
        torch.mm(x.to(out.dtype), weight.T.to(out.dtype), out=out)
    return out if bias is None else out.add_(bias)


def dense_rows_reference(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The same in float64."""
    product = x.double() @ weight.double().T
    return product if bias is None else product + bias.double()
