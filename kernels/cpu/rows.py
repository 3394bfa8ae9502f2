"""Operations on one row at a time (norm, activation): fixed order within a row, nothing across; knows only bytes."""

import numpy as np
import torch
from torch import Tensor

from kernels.cpu.compile import inline, kernel
from kernels.cpu.exponential import exp
from kernels.cpu.pool import float_bits, launch
from kernels.cpu.simd import (
    LANES,
    Vector,
    add,
    div,
    f32_of_bits,
    first_lane,
    fma,
    get_f32,
    lane_sum,
    load_f32,
    mul,
    set_f32,
    splat_f32,
    store_f32,
    sub,
)

# elements a piece of work has at least: below some microseconds a second thread costs more than it takes over
ELEMENTS_PER_ITEM = 8192
ZERO, ONE = np.float32(0), np.float32(1)


def rows_per_item(columns: int) -> int:
    return max(1, ELEMENTS_PER_ITEM // max(1, columns))


@inline
def sum_of_squares(x, columns) -> float:
    whole = columns // LANES * LANES
    lanes = splat_f32(ZERO)
    for i in range(0, whole, LANES):
        value = load_f32(x + 4 * i)
        lanes = fma(value, value, lanes)
    total = lane_sum(lanes)
    for i in range(whole, columns):
        total += get_f32(x + 4 * i) * get_f32(x + 4 * i)
    return total


@inline
def normalise(x, weight, out, columns, eps) -> None:
    """out = x / sqrt(mean(x^2) + eps) * weight"""
    mean = sum_of_squares(x, columns) / np.float32(columns)
    inverse = ONE / np.float32(np.sqrt(mean + eps))
    whole = columns // LANES * LANES
    scale = splat_f32(inverse)
    for i in range(0, whole, LANES):
        store_f32(out + 4 * i, mul(load_f32(weight + 4 * i), mul(load_f32(x + 4 * i), scale)))
    for i in range(whole, columns):
        set_f32(out + 4 * i, get_f32(weight + 4 * i) * (get_f32(x + 4 * i) * inverse))


@inline
def _add_into(x, residual, columns) -> None:
    whole = columns // LANES * LANES
    for i in range(0, whole, LANES):
        store_f32(residual + 4 * i, add(load_f32(residual + 4 * i), load_f32(x + 4 * i)))
    for i in range(whole, columns):
        set_f32(residual + 4 * i, get_f32(residual + 4 * i) + get_f32(x + 4 * i))


@kernel
def rms_norm_rows(args, item, worker) -> None:
    x, residual, weight, out = args[0], args[1], args[2], args[3]
    rows, columns, rows_each, eps = args[4], args[5], args[6], f32_of_bits(args[7])
    for row in range(item * rows_each, min(rows, (item + 1) * rows_each)):
        offset = row * 4 * columns
        source = x + offset
        if residual != 0:
            _add_into(source, residual + offset, columns)
            source = residual + offset
        normalise(source, weight, out + offset, columns, eps)


@inline
def _silu(gate) -> Vector:
    return div(gate, add(splat_f32(ONE), exp(sub(splat_f32(ZERO), gate))))


@kernel
def silu_mul_rows(args, item, worker) -> None:
    gate_up, out, rows, columns, rows_each = args[0], args[1], args[2], args[3], args[4]
    for row in range(item * rows_each, min(rows, (item + 1) * rows_each)):
        gate = gate_up + row * 8 * columns
        up, o = gate + 4 * columns, out + row * 4 * columns
        for i in range(0, columns - LANES + 1, LANES):
            store_f32(o + 4 * i, mul(_silu(load_f32(gate + 4 * i)), load_f32(up + 4 * i)))
        for i in range(columns // LANES * LANES, columns):
            # a lone element goes through the same vector code, so its bits do not depend on where it lies
            one = mul(_silu(splat_f32(get_f32(gate + 4 * i))), splat_f32(get_f32(up + 4 * i)))
            set_f32(o + 4 * i, first_lane(one))


def rms_norm(x: Tensor, weight: Tensor, eps: float, residual: Tensor | None) -> Tensor:
    x = x if x.is_contiguous() else x.contiguous()
    rows, columns = x.shape
    out = torch.empty((rows, columns))
    each = rows_per_item(columns)
    launch(
        rms_norm_rows,
        -(-rows // each),
        x.data_ptr(),
        0 if residual is None else residual.data_ptr(),
        weight.data_ptr(),
        out.data_ptr(),
        rows,
        columns,
        each,
        float_bits(eps),
    )
    return out


def silu_mul(gate_up: Tensor) -> Tensor:
    gate_up = gate_up if gate_up.is_contiguous() else gate_up.contiguous()
    rows, columns = gate_up.shape[0], gate_up.shape[1] // 2
    out = torch.empty((rows, columns))
    each = rows_per_item(2 * columns)
    launch(silu_mul_rows, -(-rows // each), gate_up.data_ptr(), out.data_ptr(), rows, columns, each)
    return out
