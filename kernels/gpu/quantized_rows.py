"""Rows of activations in 8 bits with one fp32 scale a row, and the kernel that makes them; knows no matrix product.

scale = absmax / 448 (e4m3) or absmax / 127 (int8), 1 for a row of zeros; data = x / scale, rounded half to even. A row
with a NaN or an infinity gets the scale NaN, so that the product of it is NaN too and not a plausible number.
"""

from dataclasses import dataclass
from typing import Literal

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.gpu.launch import pdl

QuantizedKind = Literal["fp8", "int8"]
DTYPE = {"fp8": torch.float8_e4m3fn, "int8": torch.int8}
LARGEST = {"fp8": 448.0, "int8": 127.0}
INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)
KIND_CODE: dict[str | None, int] = {None: 0, "fp8": 1, "int8": 2}


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizedRows:
    data: Tensor
    """[T, D] float8_e4m3fn or int8"""
    scale: Tensor
    """[T] fp32; row = data * scale"""


def empty_quantized_rows(rows: int, width: int, kind: QuantizedKind, device: torch.device) -> QuantizedRows:
    return QuantizedRows(
        data=torch.empty(rows, width, dtype=DTYPE[kind], device=device),
        scale=torch.empty(rows, dtype=torch.float32, device=device),
    )


def quantize_rows(x: Tensor, kind: QuantizedKind, out: QuantizedRows | None = None) -> QuantizedRows:
    """x [T, D] bf16 or fp32 with contiguous rows, D up to 32768."""
    rows, width = x.shape
    out = empty_quantized_rows(rows, width, kind, x.device) if out is None else out
    if rows == 0:
        return out
    block = triton.next_power_of_2(width)
    on = pdl(x)
    _quantize_rows_kernel[(rows,)](
        x, out.data, out.scale, width, x.stride(0), out.data.stride(0),
        KIND=KIND_CODE[kind], BLOCK=block, PDL=on, num_warps=min(max(block // 512, 1), 16),
        **({"launch_pdl": True} if on else {}),
    )  # fmt: skip
    return out


def quantize_rows_reference(x: Tensor, kind: QuantizedKind) -> QuantizedRows:
    x = x.float()
    scale = x.abs().amax(-1) / LARGEST[kind]
    scale = torch.where(scale == 0, torch.ones_like(scale), scale)
    scale = torch.where(scale.isfinite(), scale, torch.full_like(scale, float("nan")))
    data = x / scale[:, None]
    data = data.clamp(-448, 448) if kind == "fp8" else data.round().clamp(-127, 127).nan_to_num(0)
    return QuantizedRows(data=data.to(DTYPE[kind]), scale=scale)


@triton.jit
def round_to(y, DTYPE: tl.constexpr):
    """fp32 to the nearest of DTYPE, half to even."""
    if tl.float32 == DTYPE:
        return y
    else:  # noqa: RET505 - the compiler drops this branch only where it is one
        return (_pre_rounded(y, DTYPE) if INTERPRETED else y).to(DTYPE)


@triton.jit
def _pre_rounded(y, DTYPE: tl.constexpr):
    """fp32 that a cast to DTYPE does not change: the interpreter's cast truncates (bf16) or loses a carry (e4m3)."""
    bits = y.to(tl.int32, bitcast=True)
    if tl.bfloat16 == DTYPE:
        rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) & -0x10000).to(tl.float32, bitcast=True)
    else:
        normal = ((bits + 0x7FFFF + ((bits >> 20) & 1)) & -0x100000).to(tl.float32, bitcast=True)
        # Below 2^-6 e4m3 has steps of 2^-9; 1.5 * 2^14 has no bits under that.
        rounded = tl.where(tl.abs(y) < 0.015625, (y + 24576.0) - 24576.0, normal)
    return tl.where(y == y, rounded, y)


@triton.jit
def row_absmax(y):
    """[ROWS, BLOCK] -> [ROWS]; of the bits as integers, where a NaN is above infinity: max.f32 would drop it."""
    bits = y.to(tl.int32, bitcast=True) & 0x7FFFFFFF
    return tl.max(bits, axis=1).to(tl.float32, bitcast=True)


@triton.jit
def quantize_tile(y, absmax, KIND: tl.constexpr):
    """fp32 [ROWS, BLOCK] and its rows' absmax -> data, scale [ROWS]."""
    scale = _scale(absmax, KIND)
    return _quantized(y * (1.0 / scale)[:, None], KIND), scale


@triton.jit
def quantize_row(y, KIND: tl.constexpr):
    """fp32 [BLOCK], one row -> data, scale. Not a tile of one row: its scale and data would be stored in two layouts,
    for which the compiler moves the row through shared memory twice."""
    bits = y.to(tl.int32, bitcast=True) & 0x7FFFFFFF
    scale = _scale(tl.max(bits, axis=0).to(tl.float32, bitcast=True), KIND)
    return _quantized(y * (1.0 / scale), KIND), scale


@triton.jit
def _scale(absmax, KIND: tl.constexpr):
    largest: tl.constexpr = 448.0 if KIND == 1 else 127.0
    return tl.where(absmax == 0.0, 1.0, absmax * (1.0 / largest)) + (absmax - absmax)


@triton.jit
def _quantized(scaled, KIND: tl.constexpr):
    # Rounding of the scale can leave the largest element a bit above the range; NaN stays NaN in fp8.
    if KIND == 1:
        if INTERPRETED:  # a GPU's conversion saturates
            scaled = tl.where(scaled > 448.0, 448.0, tl.where(scaled < -448.0, -448.0, scaled))
        data = round_to(scaled, tl.float8e4nv)
    else:
        scaled = tl.minimum(tl.maximum(scaled, -127.0), 127.0)
        scaled = tl.where(scaled == scaled, scaled, 0.0)
        # Adding 1.5 * 2^23 leaves no bits for a fraction: round half to even in two additions.
        data = ((scaled + 12582912.0) - 12582912.0).to(tl.int8)
    return data


@triton.jit
def _quantize_rows_kernel(
    x, data, scale, width, x_stride, data_stride, KIND: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr
):
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < width
    y = tl.load(x + row * x_stride + columns, mask=inside, other=0.0).to(tl.float32)
    quantized, row_scale = quantize_row(y, KIND)
    tl.store(data + row * data_stride + columns, quantized, mask=inside)
    tl.store(scale + row, row_scale)
