"""The gated activation of the feed-forward layer on bf16 rows, with 8-bit rows after it; does not know the layer.

out = silu(gate) * up, silu(g) = g / (1 + e^-g), with gate and up side by side in one tensor.
"""

from dataclasses import dataclass

import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional
from triton.language.extra import libdevice

from kernels.gpu.launch import pdl
from kernels.gpu.quantized_rows import (
    INTERPRETED,
    KIND_CODE,
    QuantizedKind,
    QuantizedRows,
    empty_quantized_rows,
    quantize_row,
    round_to,
)

MAX_QUANTIZED_WIDTH = 32768


@dataclass(frozen=True, slots=True, kw_only=True)
class SiluMulConfig:
    block: int
    """Outputs a program makes of one row; a power of two, and with 8-bit rows at least the width"""
    num_warps: int


def default_config(rows: int, width: int, quantize: QuantizedKind | None) -> SiluMulConfig:
    """8 outputs a thread (one 16-byte load of gate, one of up); a whole row a program where its absmax is needed, and
    16 outputs a thread: 32 took 306 us and not 273 for 8192 rows of 14336 on an H100."""
    if quantize is None:
        block = min(1024, triton.next_power_of_2(width))
        return SiluMulConfig(block=block, num_warps=min(max(block // 256, 1), 4))
    block = triton.next_power_of_2(width)
    return SiluMulConfig(block=block, num_warps=min(max(block // 512, 1), 32))


def silu_mul(
    gate_up: Tensor,
    out: Tensor | QuantizedRows | None = None,
    quantize: QuantizedKind | None = None,
    config: SiluMulConfig | None = None,
) -> Tensor | QuantizedRows:
    """[M, 2F] bf16 or fp32 -> [M, F]; rows may be strided. With `quantize`, a QuantizedRows (and `out` is one)."""
    rows, width = gate_up.shape[0], gate_up.shape[1] // 2
    if quantize is not None:
        if width > MAX_QUANTIZED_WIDTH:
            raise ValueError(f"a row of 8-bit outputs is at most {MAX_QUANTIZED_WIDTH} wide, not {width}")
        quantized = empty_quantized_rows(rows, width, quantize, gate_up.device) if out is None else out
        assert isinstance(quantized, QuantizedRows)
        product, scale = quantized.data, quantized.scale
    else:
        plain = gate_up.new_empty(rows, width) if out is None else out
        assert isinstance(plain, Tensor)
        product = scale = plain
    result = plain if quantize is None else quantized
    if rows == 0:
        return result
    config = config or default_config(rows, width, quantize)
    on = pdl(gate_up)
    _silu_mul_kernel[(rows, triton.cdiv(width, config.block))](
        gate_up, product, scale, width, gate_up.stride(0), product.stride(0),
        KIND=KIND_CODE[quantize], BLOCK=config.block, PDL=on, num_warps=config.num_warps,
        **({"launch_pdl": True} if on else {}),
    )  # fmt: skip
    return result


def silu_mul_reference(gate_up: Tensor) -> Tensor:
    """float64 [M, F]"""
    gate, up = gate_up.double().chunk(2, dim=-1)
    return functional.silu(gate) * up


@triton.jit
def _quotient(x, y):
    """x / y for y of 1 and above: one reciprocal and one product (0 above 2^126), not the eight steps of a division."""
    if INTERPRETED:
        return x / y
    else:  # noqa: RET505 - the compiler drops this branch only where it is one
        return libdevice.fast_dividef(x, y)


@triton.jit
def _silu_mul_kernel(
    gate_up, out, scale, width, in_stride, out_stride, KIND: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr
):
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < width
    gate = tl.load(gate_up + row * in_stride + columns, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_up + row * in_stride + width + columns, mask=inside, other=0.0).to(tl.float32)
    product = _quotient(gate, 1.0 + tl.exp(-gate)) * up
    place = out + row * out_stride + columns
    if KIND == 0:
        tl.store(place, round_to(product, out.dtype.element_ty), mask=inside)
    else:
        quantized, row_scale = quantize_row(product, KIND)
        tl.store(place, quantized, mask=inside)
        tl.store(scale + row, row_scale)
