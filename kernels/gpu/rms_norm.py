"""Root-mean-square norm of bf16 rows, with the residual sum before it and 8-bit rows after it; not which norm it is.

out = h / sqrt(mean(h^2) + eps) * weight, where h = x, or residual + x (rounded to the residual's dtype), which then
replaces the residual. One pass: a row stays in registers from its load to its 8-bit store.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.gpu.launch import pdl
from kernels.gpu.quantized_rows import (
    KIND_CODE,
    QuantizedKind,
    QuantizedRows,
    empty_quantized_rows,
    quantize_tile,
    round_to,
    row_absmax,
)

MAX_WIDTH = 16384


@dataclass(frozen=True, slots=True, kw_only=True)
class RmsNormConfig:
    rows_per_tile: int
    """Rows a program holds at once"""
    tiles_per_program: int
    """Tiles one after the other, for which the weight is loaded once"""
    num_warps: int


def default_config(rows: int, width: int) -> RmsNormConfig:
    """16 elements a thread: two 16-byte loads of bf16; narrow rows share a program once there are many."""
    block = triton.next_power_of_2(width)
    rows_per_tile = 1 if rows < 1024 or block >= 4096 else 4096 // block
    rows_per_tile = min(rows_per_tile, 32)
    # The weight is a bf16 row, in fp32 two: with 8192 rows of 4096 it is 67 MB of L2 reads beside 268 MB of rows.
    tiles = 4 if rows >= 4096 * rows_per_tile else 1
    warps = min(max(rows_per_tile * block // 512, 1), 16)
    return RmsNormConfig(rows_per_tile=rows_per_tile, tiles_per_program=tiles, num_warps=warps)


def rms_norm(
    x: Tensor,
    weight: Tensor,
    eps: float,
    residual: Tensor | None = None,
    out: Tensor | QuantizedRows | None = None,
    quantize: QuantizedKind | None = None,
    config: RmsNormConfig | None = None,
) -> Tensor | QuantizedRows:
    """x [T, D] bf16 or fp32, weight [D] of any float dtype; `residual` [T, D] of x's dtype is changed in place.

    Rows may be strided, their elements are contiguous. With `quantize`, a QuantizedRows (and `out` is one).
    """
    rows, width = x.shape
    if width > MAX_WIDTH:
        raise ValueError(f"rms_norm holds a row of at most {MAX_WIDTH} elements, not {width}")
    if quantize is not None:
        quantized = empty_quantized_rows(rows, width, quantize, x.device) if out is None else out
        assert isinstance(quantized, QuantizedRows)
        normed, scale = quantized.data, quantized.scale
    else:
        plain = torch.empty_like(x) if out is None else out
        assert isinstance(plain, Tensor)
        normed = scale = plain
    result = plain if quantize is None else quantized
    if rows == 0:
        return result
    config = config or default_config(rows, width)
    on = pdl(x)
    _rms_norm_kernel[(triton.cdiv(rows, config.rows_per_tile * config.tiles_per_program),)](
        x, weight, x if residual is None else residual, normed, scale, rows, width, eps,
        x.stride(0), x.stride(0) if residual is None else residual.stride(0), normed.stride(0),
        RESIDUAL=residual is not None, KIND=KIND_CODE[quantize], ROWS=config.rows_per_tile,
        TILES=config.tiles_per_program, BLOCK=triton.next_power_of_2(width), PDL=on, num_warps=config.num_warps,
        **({"launch_pdl": True} if on else {}),
    )  # fmt: skip
    return result


def rms_norm_reference(x: Tensor, weight: Tensor, eps: float, residual: Tensor | None = None) -> Tensor:
    """float64 [T, D]; `residual` is changed in place."""
    h = x.double() if residual is None else residual.copy_(residual.float() + x.float()).double()
    return weight.double() * (h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + eps))


@triton.jit(do_not_specialize=["rows"])  # else an odd number of rows compiles another
def _rms_norm_kernel(
    x, weight, residual, out, scale, rows, width, eps, x_stride, residual_stride, out_stride,
    RESIDUAL: tl.constexpr, KIND: tl.constexpr, ROWS: tl.constexpr, TILES: tl.constexpr, BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    columns = tl.arange(0, BLOCK)[None, :]
    inside = columns < width
    scales = tl.load(weight + columns, mask=inside, other=0.0)
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    first = tl.program_id(0) * (ROWS * TILES)
    for tile in range(TILES):
        row = first + tile * ROWS + tl.arange(0, ROWS)
        wide = row[:, None].to(tl.int64)
        mask = inside & (row[:, None] < rows)
        h = tl.load(x + wide * x_stride + columns, mask=mask, other=0.0).to(tl.float32)
        if RESIDUAL:
            place = residual + wide * residual_stride + columns
            summed = h + tl.load(place, mask=mask, other=0.0).to(tl.float32)
            summed = round_to(summed, residual.dtype.element_ty)
            tl.store(place, summed, mask=mask)
            h = summed.to(tl.float32)
        mean_square = tl.sum(h * h, axis=1) / width
        y = h * tl.rsqrt(mean_square + eps)[:, None] * scales
        place = out + wide * out_stride + columns
        if KIND == 0:
            tl.store(place, round_to(y, out.dtype.element_ty), mask=mask)
        else:
            quantized, row_scale = quantize_tile(y, row_absmax(y), KIND)
            tl.store(place, quantized, mask=mask)
            tl.store(scale + row, row_scale, mask=row < rows)
