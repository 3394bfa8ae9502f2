"""LLM.int8() over packed panels: activations to int8, an exact integer product, outliers apart; knows only bytes.

The integer product has no rounding, and a row's outliers are added in the order of k: no neighbour can change its bits.
"""

import numpy as np
import torch
from torch import Tensor

from kernels.cpu.compile import inline, kernel
from kernels.cpu.dense import PANELS_PER_ITEM, row_block
from kernels.cpu.pool import float_bits, launch_two, scratch
from kernels.cpu.simd import (
    LANES,
    Vector,
    absolute,
    add,
    f32_of_bits,
    fma,
    get_f32,
    get_i32,
    lane_max,
    less,
    load_f32,
    load_i32,
    mask_bits,
    maximum,
    mul,
    round_even,
    select,
    set_f32,
    set_i32,
    signed_byte_pairs,
    splat_f32,
    store_f32,
    store_i16,
    to_f32,
    to_i32,
)
from kernels.cpu.tile import ROWS, product_i8
from kernels.packing import pad_to

ZERO, ONE = np.float32(0), np.float32(1)


@kernel
def _quantize_rows(args, item, worker) -> None:
    """x -> int16 holding integers up to `levels`, its scale, and the places of its outliers, a row an item."""
    k = args[7]
    x, quantized = args[0] + item * 4 * k, args[1] + item * 2 * k
    threshold, levels = splat_f32(f32_of_bits(args[14])), f32_of_bits(args[15])
    outliers = args[4] + item * 4 * k
    zero = splat_f32(ZERO)
    largest, count = zero, 0
    for i in range(0, k, LANES):
        magnitude = absolute(load_f32(x + 4 * i))
        regular = less(magnitude, threshold)
        largest = maximum(largest, select(regular, magnitude, zero))
        bits = mask_bits(regular) ^ 0xFFFF
        lane = 0
        while bits != 0:
            if bits & 1:
                set_i32(outliers + 4 * count, np.int32(i + lane))
                count += 1
            bits >>= 1
            lane += 1
    absmax = lane_max(largest)
    # the reciprocal first, as torch computes levels / absmax (and so bitsandbytes): ties round alike
    inverse = splat_f32(ONE / absmax * levels if absmax > ZERO else ZERO)
    for i in range(0, k, LANES):
        values = load_f32(x + 4 * i)
        regular = less(absolute(values), threshold)
        store_i16(quantized + 2 * i, to_i32(round_even(select(regular, mul(values, inverse), zero))))
    set_f32(args[2] + 4 * item, absmax / levels)
    set_i32(args[3] + 4 * item, np.int32(count))


@inline
def _outlier_sum(x, outliers, count, weight) -> Vector:
    """sum of x[k] * weight[k] over the row's outliers k, ascending; weight still in integers."""
    total = splat_f32(ZERO)
    for i in range(count):
        k = np.int64(get_i32(outliers + 4 * i))
        pairs = weight + (k >> 1) * 2 * LANES
        total = fma(splat_f32(get_f32(x + 4 * k)), signed_byte_pairs(pairs, k & 1), total)
    return total


@kernel
def _int8_panels(args, item, worker) -> None:
    """out = (integer product * row scale + outliers) * weight scale (+ bias), for some rows and panels."""
    x, quantized, scale, counts, outliers = args[0], args[1], args[2], args[3], args[4]
    out, m, k, weight, weight_scale = args[5], args[6], args[7], args[8], args[9]
    bias, panels, block, groups = args[10], args[11], args[12], args[13]
    out_stride = panels * 4 * LANES
    first_row, first = item // groups * block, item % groups * PANELS_PER_ITEM
    end_row = min(m, first_row + block)
    for panel in range(first, min(panels, first + PANELS_PER_ITEM)):
        w = weight + panel * k * LANES
        column = out + panel * 4 * LANES
        row = first_row
        tiles = (end_row - first_row + ROWS - 1) // ROWS
        for tile in range(tiles):
            rows = (end_row - row + tiles - tile - 1) // (tiles - tile)
            product_i8(rows, quantized + row * 2 * k, 2 * k, w, k, column + row * out_stride, out_stride)
            row += rows
        panel_scale = load_f32(weight_scale + panel * 4 * LANES)
        for row in range(first_row, end_row):
            o = column + row * out_stride
            total = mul(to_f32(load_i32(o)), splat_f32(get_f32(scale + 4 * row)))
            count = get_i32(counts + 4 * row)
            if count > 0:
                total = add(total, _outlier_sum(x + row * 4 * k, outliers + row * 4 * k, count, w))
            total = mul(total, panel_scale)
            if bias != 0:
                total = add(total, load_f32(bias + panel * 4 * LANES))
            store_f32(o, total)


def matmul(
    x: Tensor, panels: Tensor, scale: Tensor, out_features: int, bias: Tensor | None, threshold: float, levels: int
) -> Tensor:
    """x [M, K] fp32, panels [panels, K/2, LANES, 2] int8 with K padded to LANES, scale [panels * LANES]."""
    num_panels, k = panels.shape[0], 2 * panels.shape[1]
    m = x.shape[0]
    x = pad_to(x, 1, LANES).contiguous()
    if bias is not None:
        bias = pad_to(bias, 0, LANES)
    out = torch.empty((m, num_panels * LANES))
    # int16 values, fp32 scales, int32 numbers of outliers, int32 places of outliers
    quantized = scratch(m * (2 * k + 4 + 4 + 4 * k))
    row_scale = quantized + m * 2 * k
    counts = row_scale + m * 4
    block = row_block(m, k // 2)
    groups = -(-num_panels // PANELS_PER_ITEM)
    launch_two(
        _quantize_rows,
        m,
        _int8_panels,
        -(-m // block) * groups if m else 0,
        x.data_ptr(),
        quantized,
        row_scale,
        counts,
        counts + m * 4,
        out.data_ptr(),
        m,
        k,
        panels.data_ptr(),
        scale.data_ptr(),
        0 if bias is None else bias.data_ptr(),
        num_panels,
        block,
        groups,
        float_bits(threshold),
        float_bits(float(levels)),
    )
    return out if num_panels * LANES == out_features else out[:, :out_features].contiguous()
