"""The dense matrix product over packed panels; knows layouts of bytes, not modules or devices.

A panel is sixteen output columns. Every output element is one chain of fused multiply-adds over k = 0, 1, ...:
no block size, thread or neighbouring row can change its bits.
"""

import torch
from torch import Tensor

from kernels.cpu.compile import inline, kernel
from kernels.cpu.pool import launch
from kernels.cpu.simd import LANES, high_bf16, load_f32, load_i32, low_bf16
from kernels.cpu.tile import ROWS, load_tile, store_tile, tile_fma, tile_rows, with_rows
from kernels.packing import pad_to

PANELS_PER_ITEM = 4
# rows of activations that stay in the L2 cache (512 KB on Zen 3) while panels pass
ROW_BLOCK_BYTES = 192 * 1024


def row_block(m: int, k: int) -> int:
    """Rows that share a pass over the panels, a multiple of the tile's rows."""
    return min(m, max(ROWS, ROW_BLOCK_BYTES // (4 * k) // ROWS * ROWS))


@inline
def accumulate_bf16(tile, x, stride, weight, step, k):
    """tile += x[:, :k] @ weight[:k]: a lane of weight holds k and k + 1, pairs of k are `step` bytes apart."""
    for pair in range(k >> 1):
        weights = load_i32(weight + pair * step)
        tile = tile_fma(tile, x + 8 * pair, stride, low_bf16(weights))
        tile = tile_fma(tile, x + 8 * pair + 4, stride, high_bf16(weights))
    if k & 1:
        tile = tile_fma(tile, x + 4 * (k - 1), stride, low_bf16(load_i32(weight + (k >> 1) * step)))
    return tile


@inline
def accumulate_f32(tile, x, stride, weight, step, k):
    """tile += x[:, :k] @ weight[:k], one k every `step` bytes of weight."""
    for i in range(k):
        tile = tile_fma(tile, x + 4 * i, stride, load_f32(weight + i * step))
    return tile


@inline
def start(tile, bias):
    """The first value of each chain: the bias, else zero."""
    return load_tile(tile, bias, 0) if bias != 0 else tile


@inline
def _rows_bf16(tile, x, x_stride, weight, k, bias, out, out_stride):
    tile = accumulate_bf16(start(tile, bias), x, x_stride, weight, 4 * LANES, k)
    store_tile(tile, out, out_stride)


@inline
def rows_f32(tile, x, x_stride, weight, k, bias, out, out_stride):
    tile = accumulate_f32(start(tile, bias), x, x_stride, weight, 4 * LANES, k)
    store_tile(tile, out, out_stride)


@inline
def panel_rows(step, x, x_stride, rows, weight, k, bias, out, out_stride):
    """One panel for many rows, in tiles of at most ROWS."""
    tiles = (rows + ROWS - 1) // ROWS
    row = 0
    for tile in range(tiles):
        count = tile_rows(rows - row, tiles - tile)
        xr, o = x + row * x_stride, out + row * out_stride
        with_rows(step, count, xr, x_stride, weight, k, bias, o, out_stride)
        row += count


@inline
def _dense(step, panel_bytes, args, item):
    x, x_stride, weight, bias, out, out_stride = args[0], args[1], args[2], args[3], args[4], args[5]
    m, k, panels, block, groups = args[6], args[7], args[8], args[9], args[10]
    row = item // groups * block
    first = item % groups * PANELS_PER_ITEM
    for panel in range(first, min(panels, first + PANELS_PER_ITEM)):
        column = 4 * LANES * panel
        panel_rows(
            step,
            x + row * x_stride,
            x_stride,
            min(block, m - row),
            weight + panel * panel_bytes,
            k,
            bias + column if bias != 0 else 0,
            out + row * out_stride + column,
            out_stride,
        )


@kernel
def dense_bf16(args, item, worker):
    _dense(_rows_bf16, ((args[7] + 1) >> 1) * 4 * LANES, args, item)


@kernel
def dense_f32(args, item, worker):
    _dense(rows_f32, args[7] * 4 * LANES, args, item)


def matmul(kernel: int, x: Tensor, out_features: int, bias: Tensor | None, *weight: int) -> Tensor:
    """Launch a kernel of `_dense`'s arguments; an N that is no multiple of LANES is computed wider and cut."""
    m, k = x.shape
    panels = -(-out_features // LANES)
    out = torch.empty((m, panels * LANES))
    x = x if x.is_contiguous() else x.contiguous()
    if bias is not None:
        bias = pad_to(bias, 0, LANES)
    block = row_block(m, k)
    groups = -(-panels // PANELS_PER_ITEM)
    launch(
        kernel,
        -(-m // block) * groups if m else 0,
        x.data_ptr(),
        4 * k,
        weight[0],
        0 if bias is None else bias.data_ptr(),
        out.data_ptr(),
        4 * LANES * panels,
        m,
        k,
        panels,
        block,
        groups,
        *weight[1:],
    )
    return out if panels * LANES == out_features else out[:, :out_features].contiguous()
