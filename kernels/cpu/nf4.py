"""The 4-bit NormalFloat matrix product over packed panels: codes become fp32 in registers or in a panel; knows only bytes.

Both ways give the same fp32 weight (table[code] * block scale) and add in the order of k, so they agree to the bit.
"""

import numpy as np
import torch
from torch import Tensor

from kernels.cpu.compile import inline, kernel
from kernels.cpu.dense import PANELS_PER_ITEM, panel_rows, rows_f32, start
from kernels.cpu.dense import matmul as dense_launch
from kernels.cpu.pool import num_threads
from kernels.cpu.simd import (
    LANES,
    load_f32,
    load_i32,
    lookup,
    mul,
    shift_right_zeros,
    splat_i32,
    store_f32,
)
from kernels.cpu.tile import store_tile, tile_fma, zero_tile

# rows up to which a code is decoded again for each row: it costs about six instructions, a pass through the cache more
FUSED_ROWS = 2
NIBBLE = np.int32(4)


@inline
def _fused_rows(tile, x, x_stride, codes, scales, table, k, block, bias, out, out_stride):
    tile = start(tile, bias)
    values, four = load_f32(table), splat_i32(NIBBLE)
    for first in range(0, k, block):
        scale = load_f32(scales + first // block * 4 * LANES)
        for word in range(first, first + block, 8):
            nibbles = load_i32(codes + word * (LANES // 2))
            for i in range(word, word + 8):
                tile = tile_fma(tile, x + 4 * i, x_stride, mul(lookup(values, nibbles), scale))
                nibbles = shift_right_zeros(nibbles, four)
    store_tile(tile, out, out_stride)


@inline
def _decode(codes, scales, table, k, block, panel):
    values, four = load_f32(table), splat_i32(NIBBLE)
    for first in range(0, k, block):
        scale = load_f32(scales + first // block * 4 * LANES)
        for word in range(first, first + block, 8):
            nibbles = load_i32(codes + word * (LANES // 2))
            for i in range(word, word + 8):
                store_f32(panel + i * 4 * LANES, mul(lookup(values, nibbles), scale))
                nibbles = shift_right_zeros(nibbles, four)


@kernel
def _nf4_panels(args, item, worker):
    x, x_stride, codes, bias, out, out_stride = args[0], args[1], args[2], args[3], args[4], args[5]
    m, k, panels, rows, groups = args[6], args[7], args[8], args[9], args[10]
    scales, table, block, scratch = args[11], args[12], args[13], args[14]
    row, first = item // groups * rows, item % groups * PANELS_PER_ITEM
    count = min(rows, m - row)
    decoded = scratch + worker * k * 4 * LANES
    for panel in range(first, min(panels, first + PANELS_PER_ITEM)):
        c = codes + panel * k * (LANES // 2)
        s = scales + panel * (k // block) * 4 * LANES
        column = panel * 4 * LANES
        b = bias + column if bias != 0 else 0
        xr, o = x + row * x_stride, out + row * out_stride + column
        if count == 1:
            _fused_rows(zero_tile(1), xr, x_stride, c, s, table, k, block, b, o, out_stride)
        elif count == 2:
            _fused_rows(zero_tile(2), xr, x_stride, c, s, table, k, block, b, o, out_stride)
        else:
            _decode(c, s, table, k, block, decoded)
            panel_rows(rows_f32, xr, x_stride, count, decoded, k, b, o, out_stride)


def matmul(
    x: Tensor,
    codes: Tensor,
    scales: Tensor,
    table: Tensor,
    block: int,
    out_features: int,
    bias: Tensor | None,
) -> Tensor:
    """x [M, K] fp32, codes [panels, K/8, LANES] int32, scales [panels, K/block, LANES] fp32, table [16] fp32."""
    k = x.shape[1]
    # a panel of this thread's own; with so few rows nothing is decoded into it
    scratch = torch.empty(num_threads() * k * LANES) if x.shape[0] > FUSED_ROWS else table
    weight = (codes.data_ptr(), scales.data_ptr(), table.data_ptr(), block, scratch.data_ptr())
    return dense_launch(_nf4_panels, x, out_features, bias, *weight)
