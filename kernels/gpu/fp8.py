"""x @ weight.T with e4m3 weights, one scale an output channel, and e4m3 activations, one scale a row, on a GPU.

One row keeps its activations in bf16: only the weights' bytes count. More rows are quantised (or come quantised by the
operation before) and multiplied on the fp8 matrix units; a card without them (before compute capability 8.9) widens the
weights and multiplies in bf16. It does not know which layer it is.

Several products to choose from, by `Fp8Path`; `fp8_path` is the rule:
- "rows": `torch._scaled_mm` with row-wise scales. By torch's source that is cuBLASLt (outer vector scaling) where the
  compute capability is 9.0 and CUDA 12.9 or later, else CUTLASS. K and N must divide by 16.
- "tensor": `torch._scaled_mm` with one scale (1.0) and fast accumulation, fp32 out, the scales by a pass after it.
- "triton": scaled_gemm, which splits K where a decode batch has few tiles.
"""

from dataclasses import dataclass
from functools import cache
from typing import Literal

import torch
from torch import Tensor

from kernels.gpu.gemv import gemv
from kernels.gpu.quantized_rows import QuantizedRows, quantize_rows
from kernels.gpu.scaled_gemm import GemmConfig, scaled_gemm

Fp8Path = Literal["gemv", "triton", "rows", "tensor", "widened"]
FP8_MAX = 448.0
TRITON_ROWS = 64  # on an H100 scaled_gemm wins up to here, the row-wise library product from 128


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedFp8:
    data: Tensor
    """[N, K] float8_e4m3fn"""
    scale: Tensor
    """[N] fp32: weight = data * scale"""

    @property
    def nbytes(self) -> int:
        return self.data.nbytes + self.scale.nbytes


def pack_fp8(weight: Tensor) -> PackedFp8:
    """[N, K], one scale a row (absmax / 448)."""
    weight = weight.float()
    scale = weight.abs().amax(dim=1) / FP8_MAX
    inverse = torch.where(scale > 0, 1.0 / scale, 0.0)
    data = (weight * inverse[:, None]).clamp(-FP8_MAX, FP8_MAX).to(torch.float8_e4m3fn)
    return PackedFp8(data=data.contiguous(), scale=scale)


def dequantize_fp8(packed: PackedFp8) -> Tensor:
    """[N, K] fp32"""
    return packed.data.float() * packed.scale[:, None]


def fp8_path(rows: int, n: int, k: int, *, quantized: bool, has_fp8: bool) -> Fp8Path:
    """Which product `fp8_matmul` takes; `quantized` rows cannot go back to bf16."""
    if rows == 1 and not quantized:
        return "gemv"
    if not has_fp8:
        return "widened"
    if rows <= TRITON_ROWS or n % 16 or k % 16:
        return "triton"
    return "rows"


def fp8_matmul(
    x: Tensor | QuantizedRows,
    packed: PackedFp8,
    out: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    path: Fp8Path | None = None,
    config: GemmConfig | None = None,
) -> Tensor:
    """[M, K] bf16 (or quantised rows of it) -> [M, N] bf16; bias [N] fp32."""
    quantized = isinstance(x, QuantizedRows)
    (m, k), n = (x.data if quantized else x).shape, packed.data.shape[0]
    if path is None:
        path = fp8_path(m, n, k, quantized=quantized, has_fp8=has_fp8(packed.data))
    if path == "gemv":
        return gemv(x, packed.data, out, scale=packed.scale, bias=bias)
    if path == "widened":
        rows = (x.data.float() * x.scale[:, None]).bfloat16() if quantized else x
        return _added(rows @ dequantize_fp8(packed).to(rows.dtype).T, bias, out)
    rows = x if quantized else quantize_rows(x, "fp8")
    if path == "triton":
        return scaled_gemm(rows.data, rows.scale, packed.data, packed.scale, out, bias=bias, config=config)
    if path == "rows":
        product = torch._scaled_mm(
            rows.data,
            packed.data.t(),
            scale_a=rows.scale[:, None],
            scale_b=packed.scale[None, :],
            out_dtype=torch.bfloat16,
            use_fast_accum=True,
            **({"out": out} if out is not None and bias is None else {}),
        )
        return product if out is product else _added(product, bias, out)
    one = torch.ones((), device=packed.data.device)
    product = torch._scaled_mm(
        rows.data, packed.data.t(), scale_a=one, scale_b=one, out_dtype=torch.float32, use_fast_accum=True
    )
    return _added(product * rows.scale[:, None] * packed.scale, bias, out)


def fp8_matmul_reference(x: Tensor | QuantizedRows, packed: PackedFp8, bias: Tensor | None = None) -> Tensor:
    """The same in float64; of bf16 rows without quantising them."""
    rows = x.data.double() * x.scale.double()[:, None] if isinstance(x, QuantizedRows) else x.double()
    product = rows @ (packed.data.double() * packed.scale.double()[:, None]).T
    return product if bias is None else product + bias.double()


def has_fp8(tensor: Tensor) -> bool:
    """Whether the tensor's card multiplies fp8; the CPU, where the kernels are interpreted, does."""
    return not tensor.is_cuda or _capability(tensor.device.index) >= (8, 9)


def _added(product: Tensor, bias: Tensor | None, out: Tensor | None) -> Tensor:
    if bias is not None:
        product = product + bias
    return product.bfloat16() if out is None else out.copy_(product)


@cache
def _capability(device: int) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)
