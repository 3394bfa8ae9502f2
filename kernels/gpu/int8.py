"""x @ weight.T with LLM.int8() weights (Dettmers et al. 2022) on a GPU; it does not know which layer it is.

Up to 16 rows the weights' bytes decide, so the activations stay bf16: better than LLM.int8() and two launches fewer.
Above, each row of activations becomes int8 with a scale of its own, absmax / 127 over what is no outlier (|x| <
threshold), and a column in which any row of the batch has an outlier is multiplied in bf16, for the whole batch, as
bitsandbytes does. (The CPU path takes the single elements apart; a row's result then does not depend on its batch.)

No host waits for the outliers: the quantisation marks their columns, one program makes a sorted list of them on the
device, and the product's epilogue adds what the 8 bits lost in the listed columns. The list has room for all K.
"""

from dataclasses import dataclass
from typing import Literal

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.gpu.gemv import gemv
from kernels.gpu.launch import pdl
from kernels.gpu.scaled_gemm import GemmConfig, Outliers, scaled_gemm
from kernels.int8_matmul import quantize_int8

Int8Path = Literal["gemv", "weight_only", "int8"]
WEIGHT_ONLY_ROWS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Int8Rows:
    qdata: Tensor
    """[N, K] int8"""
    scale: Tensor
    """[N] fp32: weight = qdata * scale"""

    @property
    def nbytes(self) -> int:
        return self.qdata.nbytes + self.scale.nbytes


def pack_int8(weight: Tensor) -> Int8Rows:
    """[N, K], one scale a row (absmax / 127)."""
    quantized = quantize_int8(weight)
    return Int8Rows(qdata=quantized.qdata.contiguous(), scale=quantized.scale)


def dequantize_int8(packed: Int8Rows) -> Tensor:
    """[N, K] fp32"""
    return packed.qdata.float() * packed.scale[:, None]


def int8_path(rows: int) -> Int8Path:
    """Which product `int8_matmul` takes for that many rows."""
    if rows == 1:
        return "gemv"
    return "weight_only" if rows <= WEIGHT_ONLY_ROWS else "int8"


def int8_matmul(
    x: Tensor,
    packed: Int8Rows,
    out: Tensor | None = None,
    bias: Tensor | None = None,
    outlier_threshold: float | None = 6.0,
    *,
    path: Int8Path | None = None,
    config: GemmConfig | None = None,
) -> Tensor:
    """[M, K] bf16 -> [M, N] bf16; bias [N] fp32; a threshold of 0 or None takes no outlier apart."""
    path = path or int8_path(x.shape[0])
    if path == "gemv":
        return gemv(x, packed.qdata, out, scale=packed.scale, bias=bias)
    if path == "weight_only":
        return scaled_gemm(x, None, packed.qdata, packed.scale, out, bias=bias, config=config)
    q, scale, outliers = quantize_with_outliers(x, outlier_threshold)
    return scaled_gemm(q, scale, packed.qdata, packed.scale, out, bias=bias, outliers=outliers, config=config)


def int8_matmul_reference(
    x: Tensor,
    packed: Int8Rows,
    bias: Tensor | None = None,
    outlier_threshold: float | None = 6.0,
    *,
    path: Int8Path | None = None,
) -> Tensor:
    """The same semantics in float64."""
    rows = x.double()
    if (path or int8_path(x.shape[0])) == "int8":
        q, scale, columns = quantize_with_outliers_reference(x, outlier_threshold)
        rows = torch.where(columns, rows, q.double() * scale.double()[:, None])
    product = rows @ (packed.qdata.double() * packed.scale.double()[:, None]).T
    return product if bias is None else product + bias.double()


def quantize_with_outliers(x: Tensor, threshold: float | None) -> tuple[Tensor, Tensor, Outliers | None]:
    """[M, K] -> int8 [M, K] with 0 where there is an outlier, scale [M] fp32, and the columns that have one."""
    m, k = x.shape
    x = x.contiguous()
    q = torch.empty((m, k), dtype=torch.int8, device=x.device)
    scale = torch.empty(m, dtype=torch.float32, device=x.device)
    flags = torch.zeros(k, dtype=torch.int32, device=x.device) if threshold else scale
    with_pdl = pdl(x)
    block = triton.next_power_of_2(k)
    _quantize_kernel[(m,)](
        x,
        q,
        scale,
        flags,
        threshold or 0.0,
        K=k,
        BLOCK=block,
        OUTLIERS=bool(threshold),
        PDL=with_pdl,
        num_warps=4 if block <= 4096 else 8,
        launch_pdl=with_pdl,
    )
    if not threshold:
        return q, scale, None
    columns = torch.empty(k, dtype=torch.int32, device=x.device)
    count = torch.empty(1, dtype=torch.int32, device=x.device)
    _list_columns_kernel[(1,)](
        flags, columns, count, K=k, BLOCK=min(block, 4096), PDL=with_pdl, num_warps=8, launch_pdl=with_pdl
    )
    return q, scale, Outliers(x, columns, count)


def quantize_with_outliers_reference(x: Tensor, threshold: float | None) -> tuple[Tensor, Tensor, Tensor]:
    """int8 [M, K], scale [M], whether a column has an outlier [K]."""
    x = x.float()
    outlier = x.abs() >= (threshold or float("inf"))
    regular = x.masked_fill(outlier, 0.0)
    absmax = regular.abs().amax(dim=1)
    inverse = torch.where(absmax > 0, 127.0 / absmax, 0.0)
    return torch.round(regular * inverse[:, None]).to(torch.int8), absmax / 127.0, outlier.any(dim=0)


@triton.jit
def _quantize_kernel(
    x,
    q,
    scale,
    flags,
    threshold,
    K: tl.constexpr,
    BLOCK: tl.constexpr,
    OUTLIERS: tl.constexpr,
    PDL: tl.constexpr,
):
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    row = tl.program_id(0)
    k = tl.arange(0, BLOCK)
    inside = None if BLOCK == K else k < K
    values = tl.load(x + row.to(tl.int64) * K + k, mask=inside, other=None if BLOCK == K else 0.0).to(tl.float32)
    if OUTLIERS:
        outlier = tl.abs(values) >= threshold
        tl.store(flags + k, 1, mask=outlier)  # every program that stores here stores the same
        values = tl.where(outlier, 0.0, values)
    absmax = tl.max(tl.abs(values))
    inverse = tl.where(absmax > 0.0, 127.0 / absmax, 0.0)
    # 1.5 * 2^23: adding it rounds to the nearest integer, ties to even
    rounded = (values * inverse + 12582912.0) - 12582912.0
    tl.store(q + row.to(tl.int64) * K + k, rounded.to(tl.int8), mask=inside)
    tl.store(scale + row, absmax / 127.0)


@triton.jit
def _list_columns_kernel(flags, columns, count, K: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr):
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    listed = 0
    for block in tl.static_range((K + BLOCK - 1) // BLOCK):
        k = block * BLOCK + tl.arange(0, BLOCK)
        flag = tl.load(flags + k, mask=k < K, other=0)
        tl.store(columns + listed + tl.cumsum(flag) - flag, k, mask=flag != 0)
        listed += tl.sum(flag)
    tl.store(count, listed)
