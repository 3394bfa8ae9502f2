"""The 4-bit NormalFloat product over packed panels: codes become fp32 in registers or in a panel; knows only bytes.

Both ways give the same fp32 weight (table[code] * block scale) and add in the order of k, so they agree to the bit.
A code is looked up a byte of its float32 at a time (vpshufb has sixteen entries of a byte, two a cycle), and the
order of codes in memory is such that interleaving those bytes yields the lanes in order: 12 shuffles for 32 weights.
"""

import struct
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from torch import Tensor

from kernels.cpu.compile import kernel
from kernels.cpu.dense import PANELS_PER_ITEM, panel_rows
from kernels.cpu.dense import matmul as dense_launch
from kernels.cpu.pool import num_threads, scratch
from kernels.cpu.simd import (
    FEATURES,
    I8,
    I64,
    LANES,
    call_llvm,
    f32x16,
    lane_order,
    operation,
    pointer,
)
from kernels.cpu.tile import (
    Values,
    accumulators,
    add_products,
    by_rows,
    load,
    offset,
    store_rows,
)
from kernels.packing import NF4_TABLE

# rows up to which codes are decoded anew for each tile of rows instead of once into a panel
FUSED_ROWS = 6
BYTES = 2 * LANES
GROUP = 4


def _byte_planes() -> Values:
    """Byte 0, 1, 2 and 3 of each entry's float32, repeated for both 16-byte halves of a register."""
    entries = [struct.pack("<f", value) for value in NF4_TABLE]
    return [ir.Constant(ir.VectorType(I8, BYTES), [entry[plane] for entry in entries] * 2) for plane in range(4)]


def _look_up(builder: Any, plane: Any, indices: Any) -> Any:
    if FEATURES.get("avx2"):
        return call_llvm(builder, "llvm.x86.avx2.pshuf.b", plane.type, [plane, indices])
    found = ir.Constant(plane.type, ir.Undefined)
    for byte in range(BYTES):
        entry = builder.extract_element(indices, I64(byte))
        found = builder.insert_element(found, builder.extract_element(plane, entry), I64(byte))
    return found


def _interleave(builder: Any, a: Any, b: Any, upper: bool) -> Any:
    """a0 b0 a1 b1 ... of the lower (upper) half of each 16-byte half: vpunpckl (vpunpckh)."""
    lanes = a.type.count
    half = lanes // 2
    order = []
    for start in (0, half):
        first = start + (half // 2 if upper else 0)
        for lane in range(first, first + half // 2):
            order += [lane, lanes + lane]
    return builder.shuffle_vector(a, b, lane_order(order))


def _two_k(builder: Any, indices: Any) -> Values:
    """Thirty-two codes -> the float32 of sixteen columns at k and at k + 1."""
    planes = [_look_up(builder, plane, indices) for plane in _byte_planes()]
    words = ir.VectorType(ir.IntType(16), LANES)
    quarters = []
    for upper in (False, True):
        pairs = [builder.bitcast(_interleave(builder, planes[i], planes[i + 1], upper), words) for i in (0, 2)]
        quarters += [_interleave(builder, *pairs, upper=part) for part in (False, True)]
    floats = ir.VectorType(ir.FloatType(), LANES // 2)
    quarters = [builder.bitcast(quarter, floats) for quarter in quarters]
    join = lane_order(range(LANES))
    return [builder.shuffle_vector(quarters[i], quarters[i + 1], join) for i in (0, 2)]


def _four_k(builder: Any, codes: Any, scale: Any) -> Values:
    packed = load(builder, codes, ir.VectorType(I8, BYTES), align=1)
    low_bits = ir.Constant(packed.type, [15] * BYTES)
    low = builder.and_(packed, low_bits)
    high = builder.lshr(packed, ir.Constant(packed.type, [4] * BYTES))
    values = _two_k(builder, low) + _two_k(builder, high)
    return [builder.fmul(value, scale) for value in values]


def _each_group(builder: Any, codes: Any, scales: Any, k: Any, block: Any, use: Any) -> None:
    """use(first k of the group, its four weights) for every group, a scale for each block."""
    with cgutils.for_range(builder, builder.sdiv(k, block)) as blocks:
        scale = load(builder, offset(builder, scales, blocks.index, 4 * LANES), f32x16.one)
        first = builder.mul(blocks.index, block)
        with cgutils.for_range(builder, builder.sdiv(block, I64(GROUP))) as groups:
            start = builder.add(first, builder.mul(groups.index, I64(GROUP)))
            address = offset(builder, codes, start, BYTES // GROUP)
            use(start, _four_k(builder, address, scale))


@by_rows(*[types.int64] * 9)
def _product_nf4(
    builder: Any,
    rows: int,
    x: Any,
    x_stride: Any,
    codes: Any,
    scales: Any,
    k: Any,
    block: Any,
    first: Any,
    out: Any,
    out_stride: Any,
) -> None:
    """out[r] = first + x[r, :k] @ weight[:k]"""
    slots = accumulators(builder, load(builder, first, f32x16.one), rows)

    def use(start: Any, weights: Values) -> None:
        add_products(builder, slots, offset(builder, x, start, 4), x_stride, weights)

    _each_group(builder, codes, scales, k, block, use)
    store_rows(builder, slots, out, out_stride)


@operation(types.void, *[types.int64] * 5)
def _decode(builder: Any, codes: Any, scales: Any, k: Any, block: Any, panel: Any) -> None:
    """panel [k, LANES] float32 = the weights"""

    def use(start: Any, weights: Values) -> None:
        address = offset(builder, panel, start, 4 * LANES)
        for i, weight in enumerate(weights):
            target = builder.add(address, I64(4 * LANES * i))
            builder.store(weight, pointer(builder, target, f32x16.one), align=4)

    _each_group(builder, codes, scales, k, block, use)


@kernel
def _nf4_panels(args, item, worker) -> None:
    x, x_stride, codes, out, out_stride = args[0], args[1], args[2], args[3], args[4]
    m, k, panels, block_rows, groups = args[5], args[6], args[7], args[8], args[9]
    bias, bias_step, scales, block = args[10], args[11], args[12], args[13]
    panel_memory = args[14] + worker * k * 4 * LANES
    row, first = item // groups * block_rows, item % groups * PANELS_PER_ITEM
    rows = min(block_rows, m - row)
    for panel in range(first, min(panels, first + PANELS_PER_ITEM)):
        c = codes + panel * (k // GROUP) * BYTES
        s = scales + panel * (k // block) * 4 * LANES
        xr, o = x + row * x_stride, out + row * out_stride + panel * 4 * LANES
        b = bias + panel * bias_step
        if rows <= FUSED_ROWS:
            _product_nf4(rows, xr, x_stride, c, s, k, block, b, o, out_stride)
        else:
            _decode(c, s, k, block, panel_memory)
            panel_rows(rows, 1, xr, x_stride, panel_memory, 4 * LANES, k, b, o, out_stride)


def matmul(x: Tensor, codes: Tensor, scales: Tensor, block: int, out_features: int, bias: Tensor | None) -> Tensor:
    """x [M, K] fp32, codes [panels, K/4, 32] bytes, scales [panels, K/block, LANES] fp32."""
    panel_memory = scratch(num_threads() * 4 * LANES * x.shape[1])
    weight = (codes.data_ptr(), scales.data_ptr(), block, panel_memory)
    return dense_launch(_nf4_panels, x, out_features, bias, *weight)
