"""Products with panels of 4-bit codes, for formats that say what a code weighs; knows no such format and no layer.

A format's kernel either decodes codes in registers, anew for each tile of rows, or once into a panel of fp32. Both ways
give the same weights and add in the order of k, so they agree to the bit. The order of codes in memory
(packing.pack_nibbles) is such that interleaving the bytes of their float32 yields the lanes in order.
"""

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from torch import Tensor

from kernels.cpu.compile import inline
from kernels.cpu.dense import PANELS_PER_ITEM, panel_rows
from kernels.cpu.dense import matmul as dense_launch
from kernels.cpu.pool import num_threads, scratch
from kernels.cpu.simd import I8, I64, LANES, f32x16, lane_order, operation, pointer
from kernels.cpu.tile import Values, accumulators, add_products, by_rows, load, offset, store_rows

# rows up to which codes are decoded anew for each tile of rows instead of once into a panel
FUSED_ROWS = 6
BYTES = 2 * LANES
GROUP = 4

BlockValues = Callable[[Any, Any, Any], Values]
"""(builder, address of a block's sixteen scales, of its zeros) -> what the weights of the block need"""
Weights = Callable[[Any, Any, Values], Values]
"""(builder, thirty-two bytes 0 .. 15, the block's values) -> float32 weights of sixteen columns at k and at k + 1"""


def byte_lanes(values: list[int]) -> Any:
    """Sixteen bytes, or one, repeated to fill a register of thirty-two."""
    return ir.Constant(ir.VectorType(I8, BYTES), values * (BYTES // len(values)))


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


def floats_of_planes(builder: Any, planes: Values) -> Values:
    """Byte 0, 1, 2 and 3 of thirty-two float32 -> those of sixteen columns at k and at k + 1."""
    words = ir.VectorType(ir.IntType(16), LANES)
    quarters = []
    for upper in (False, True):
        pairs = [builder.bitcast(_interleave(builder, planes[i], planes[i + 1], upper), words) for i in (0, 2)]
        quarters += [_interleave(builder, *pairs, upper=part) for part in (False, True)]
    floats = ir.VectorType(ir.FloatType(), LANES // 2)
    quarters = [builder.bitcast(quarter, floats) for quarter in quarters]
    join = lane_order(range(LANES))
    return [builder.shuffle_vector(quarters[i], quarters[i + 1], join) for i in (0, 2)]


def _nibbles(builder: Any, codes: Any) -> Values:
    """Thirty-two codes of k and k + 1, then those of k + 2 and k + 3, one a byte."""
    packed = load(builder, codes, ir.VectorType(I8, BYTES), align=1)
    return [builder.and_(packed, byte_lanes([15])), builder.lshr(packed, byte_lanes([4]))]


class FourBit:
    """The two operations on a panel of a format, for its kernel to be compiled with."""

    def __init__(self, block_values: BlockValues, weights: Weights) -> None:
        def each_group(builder: Any, codes: Any, scales: Any, zeros: Any, k: Any, block: Any, use: Any) -> None:
            """use(first k of the group, its four weights) for every group of every block."""
            with cgutils.for_range(builder, builder.sdiv(k, block)) as blocks:
                addresses = [offset(builder, address, blocks.index, 4 * LANES) for address in (scales, zeros)]
                values = block_values(builder, *addresses)
                first = builder.mul(blocks.index, block)
                with cgutils.for_range(builder, builder.sdiv(block, I64(GROUP))) as groups:
                    start = builder.add(first, builder.mul(groups.index, I64(GROUP)))
                    halves = _nibbles(builder, offset(builder, codes, start, BYTES // GROUP))
                    use(start, [weight for half in halves for weight in weights(builder, half, values)])

        @by_rows(*[types.int64] * 10)
        def product(
            builder: Any,
            rows: int,
            x: Any,
            x_stride: Any,
            codes: Any,
            scales: Any,
            zeros: Any,
            k: Any,
            block: Any,
            first: Any,
            out: Any,
            out_stride: Any,
        ) -> None:
            slots = accumulators(builder, load(builder, first, f32x16.one), rows)

            def use(start: Any, four: Values) -> None:
                add_products(builder, slots, offset(builder, x, start, 4), x_stride, four)

            each_group(builder, codes, scales, zeros, k, block, use)
            store_rows(builder, slots, out, out_stride)

        @operation(types.void, *[types.int64] * 6)
        def decode(builder: Any, codes: Any, scales: Any, zeros: Any, k: Any, block: Any, panel: Any) -> None:
            def use(start: Any, four: Values) -> None:
                address = offset(builder, panel, start, 4 * LANES)
                for i, weight in enumerate(four):
                    target = builder.add(address, I64(4 * LANES * i))
                    builder.store(weight, pointer(builder, target, f32x16.one), align=4)

            each_group(builder, codes, scales, zeros, k, block, use)

        self.product: Any = product
        """out[r] = first + x[r, :k] @ weight[:k], for one to ROWS rows"""
        self.decode: Any = decode
        """panel [k, LANES] float32 = the weights"""


@inline
def multiply_item(product, decode, args, item, worker) -> None:
    """An item of a format's kernel: some rows with PANELS_PER_ITEM panels; `product` and `decode` are a FourBit's."""
    x, x_stride, codes, out, out_stride = args[0], args[1], args[2], args[3], args[4]
    m, k, panels, block_rows, groups = args[5], args[6], args[7], args[8], args[9]
    bias, bias_step, scales, block = args[10], args[11], args[12], args[13]
    panel_memory, zeros = args[14] + worker * k * 4 * LANES, args[15]
    row, first = item // groups * block_rows, item % groups * PANELS_PER_ITEM
    rows = min(block_rows, m - row)
    for panel in range(first, min(panels, first + PANELS_PER_ITEM)):
        c = codes + panel * (k // GROUP) * BYTES
        done = panel * (k // block) * 4 * LANES
        s, z = scales + done, zeros + done
        xr, o = x + row * x_stride, out + row * out_stride + panel * 4 * LANES
        b = bias + panel * bias_step
        if rows <= FUSED_ROWS:
            product(rows, xr, x_stride, c, s, z, k, block, b, o, out_stride)
        else:
            decode(c, s, z, k, block, panel_memory)
            panel_rows(rows, 1, xr, x_stride, panel_memory, 4 * LANES, k, b, o, out_stride)


def matmul(
    kernel: int,
    x: Tensor,
    codes: Tensor,
    scales: Tensor,
    zeros: Tensor | None,
    block: int,
    out_features: int,
    bias: Tensor | None,
) -> Tensor:
    """x [M, K] fp32, codes [panels, K/4, 32] bytes, scales and zeros [panels, K/block, LANES] fp32."""
    panel_memory = scratch(num_threads() * 4 * LANES * x.shape[1])
    zeros_address = 0 if zeros is None else zeros.data_ptr()
    weight = (codes.data_ptr(), scales.data_ptr(), block, panel_memory, zeros_address)
    return dense_launch(kernel, x, out_features, bias, *weight)
