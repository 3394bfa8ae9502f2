"""The dense matrix product over packed panels; knows layouts of bytes, not modules or devices.

A panel is sixteen output columns. Every output element is one chain of fused multiply-adds over k = 0, 1, ...:
no block size, thread or neighbouring row can change its bits.
"""

import torch
from torch import Tensor

from kernels.cpu.compile import inline, kernel
from kernels.cpu.pool import launch
from kernels.cpu.simd import LANES
from kernels.cpu.tile import LANE_BYTES, ROWS, product
from kernels.packing import pad_to

PANELS_PER_ITEM = 4
# rows of activations that stay in the L2 cache (512 KB on Zen 3) while panels pass
ROW_BLOCK_BYTES = 192 * 1024


def row_block(m: int, k: int) -> int:
    """Rows that share a pass over the panels, a multiple of the tile's rows."""
    return min(m, max(ROWS, ROW_BLOCK_BYTES // (4 * k) // ROWS * ROWS))


@inline
def panel_rows(rows, pairing, x, x_stride, weight, step, k, first, out, out_stride) -> None:
    """One panel for many rows, in tiles of at most ROWS that share them evenly: 8 rows are 4 + 4, not 6 + 2."""
    tiles = (rows + ROWS - 1) // ROWS
    row = 0
    for tile in range(tiles):
        count = (rows - row + tiles - tile - 1) // (tiles - tile)
        o = out + row * out_stride
        product(count, pairing, x + row * x_stride, x_stride, weight, step, k, first, o, out_stride)
        row += count


@kernel
def dense_panels(args, item, worker) -> None:
    x, x_stride, weight, out, out_stride = args[0], args[1], args[2], args[3], args[4]
    m, k, panels, block, groups = args[5], args[6], args[7], args[8], args[9]
    bias, bias_step, pairing = args[10], args[11], args[12]
    panel_bytes = (k + pairing - 1) // pairing * LANE_BYTES * LANES
    row = item // groups * block
    rows = min(block, m - row)
    first = item % groups * PANELS_PER_ITEM
    for panel in range(first, min(panels, first + PANELS_PER_ITEM)):
        xr, o = x + row * x_stride, out + row * out_stride + panel * 4 * LANES
        w, b = weight + panel * panel_bytes, bias + panel * bias_step
        panel_rows(rows, pairing, xr, x_stride, w, LANE_BYTES * LANES, k, b, o, out_stride)


_NO_BIAS = torch.zeros(LANES)


def matmul(kernel: int, x: Tensor, out_features: int, bias: Tensor | None, *weight: int) -> Tensor:
    """Launch a kernel with the arguments of `dense_panels`; an N that is no multiple of LANES is cut afterwards."""
    m, k = x.shape
    panels = -(-out_features // LANES)
    out = torch.empty((m, panels * LANES))
    x = x if x.is_contiguous() else x.contiguous()
    bias = _NO_BIAS if bias is None else pad_to(bias, 0, LANES)
    block = row_block(m, k)
    groups = -(-panels // PANELS_PER_ITEM)
    launch(
        kernel,
        -(-m // block) * groups if m else 0,
        x.data_ptr(),
        4 * k,
        weight[0],
        out.data_ptr(),
        4 * LANES * panels,
        m,
        k,
        panels,
        block,
        groups,
        bias.data_ptr(),
        0 if bias is _NO_BIAS else 4 * LANES,
        *weight[1:],
    )
    return out if panels * LANES == out_features else out[:, :out_features].contiguous()
