"""The 4-bit integer product over packed panels: a weight is (code - zero) * scale; knows only bytes.

0x43cc0000 is 128 + cc as a float32 (bf16's mantissa has seven bits), so that a code needs no conversion: it is byte 2
beside constants, 6 shuffles for 32 weights, and 128 + zero is subtracted, which is exact.
"""

from typing import Any

import torch
from llvmlite import ir
from torch import Tensor

from kernels.cpu import four_bit
from kernels.cpu.compile import kernel
from kernels.cpu.four_bit import FourBit, byte_lanes, floats_of_planes, multiply_item
from kernels.cpu.pool import launch
from kernels.cpu.simd import F32, constant_lanes, f32x16, get_f32, get_i64, set_f32
from kernels.cpu.tile import Values, load

ONE_TWENTY_EIGHT = 128.0
UPPER_BYTE = 0x43


def _scale_and_zero(builder: Any, scales: Any, zeros: Any) -> Values:
    zero = builder.fadd(load(builder, zeros, f32x16.one), constant_lanes(ir.Constant(F32, ONE_TWENTY_EIGHT)))
    return [load(builder, scales, f32x16.one), zero]


def _weights(builder: Any, codes: Any, block: Values) -> Values:
    scale, zero = block
    none = byte_lanes([0])
    raised = floats_of_planes(builder, [none, none, codes, byte_lanes([UPPER_BYTE])])
    return [builder.fmul(builder.fsub(value, zero), scale) for value in raised]


_FORMAT = FourBit(_scale_and_zero, _weights)
_product, _decode = _FORMAT.product, _FORMAT.decode


@kernel
def _int4_panels(args, item, worker) -> None:
    multiply_item(_product, _decode, args, item, worker)


@kernel
def _gather_columns(args, item, worker) -> None:
    """out[row, k] = x[row, order[k]], a row an item."""
    order, k = args[2], args[3]
    x, out = args[0] + item * 4 * k, args[1] + item * 4 * k
    for i in range(k):
        set_f32(out + 4 * i, get_f32(x + 4 * get_i64(order + 8 * i)))


def _in_order(x: Tensor, input_order: Tensor) -> Tensor:
    """x[:, input_order] as a launch, which a recording repeats."""
    m, k = x.shape
    x = x if x.is_contiguous() else x.contiguous()
    out = torch.empty((m, k))
    launch(_gather_columns, m, x.data_ptr(), out.data_ptr(), input_order.data_ptr(), k)
    return out


def matmul(
    x: Tensor,
    codes: Tensor,
    scales: Tensor,
    zeros: Tensor,
    input_order: Tensor | None,
    block: int,
    out_features: int,
    bias: Tensor | None,
) -> Tensor:
    """x [M, K] fp32, codes [panels, K/4, 32] bytes, scales and zeros [panels, K/block, LANES] fp32, order [K] int64."""
    if input_order is not None:
        x = _in_order(x, input_order)
    return four_bit.matmul(_int4_panels, x, codes, scales, zeros, block, out_features, bias)
