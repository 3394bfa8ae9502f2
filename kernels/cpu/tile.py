"""Register tiles: products of one to six rows with sixteen columns, as LLVM code; knows nothing of layers or caches.

Each product is one numba intrinsic whose code branches on the number of rows, so the accumulators of every case are
registers (six rows are 12 of AVX2's 16) and numba compiles no function per case. A step is one fused multiply-add (or
one exact integer multiply-add) per accumulator: an output element is one chain over k = 0, 1, ..., and neither the
number of rows nor anything outside the row can change its bits.
"""

from collections.abc import Callable, Iterator
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from kernels.cpu.simd import (
    F32,
    FEATURES,
    I32,
    I64,
    LANES,
    call_llvm,
    constant_lanes,
    f32x16,
    i16x32,
    i32x16,
    lane_order,
    lane_part,
    operation,
    pointer,
    splat,
)

ROWS = 6
# what a lane of a packed weight takes: a pair of bf16 or one float32
LANE_BYTES = 4
Values = list[Any]


def by_rows(*arguments: Any) -> Callable[[Callable[..., None]], Any]:
    """Make `emit(builder, rows, *values)` an intrinsic whose first argument is the number of rows at run time."""

    def decorate(emit: Callable[..., None]) -> Any:
        def emit_cases(builder: Any, rows: Any, *values: Any) -> None:
            end = builder.append_basic_block("rows.end")
            switch = builder.switch(rows, end)
            for case in range(1, ROWS + 1):
                block = builder.append_basic_block(f"rows.{case}")
                switch.add_case(I64(case), block)
                builder.position_at_end(block)
                emit(builder, case, *values)
                builder.branch(end)
            builder.position_at_end(end)

        emit_cases.__name__ = emit.__name__
        return operation(types.void, types.int64, *arguments)(emit_cases)

    return decorate


def load(builder: Any, address: Any, vector: Any, align: int = 4) -> Any:
    loaded = builder.load(pointer(builder, address, vector))
    loaded.align = align
    return loaded


def offset(builder: Any, address: Any, index: Any, scale: int) -> Any:
    return builder.add(address, builder.mul(index, I64(scale)))


def _row_addresses(builder: Any, address: Any, stride: Any, rows: int) -> Values:
    return [builder.add(address, builder.mul(stride, I64(row))) for row in range(rows)]


def accumulators(builder: Any, first: Any, rows: int) -> Values:
    """One stack slot a row, which LLVM makes a register."""
    slots = [cgutils.alloca_once(builder, first.type) for _ in range(rows)]
    for slot in slots:
        builder.store(first, slot)
    return slots


def store_rows(builder: Any, slots: Values, out: Any, stride: Any) -> None:
    for slot, address in zip(slots, _row_addresses(builder, out, stride, len(slots)), strict=True):
        value = builder.load(slot)
        builder.store(value, pointer(builder, address, value.type), align=4)


def add_products(builder: Any, slots: Values, x: Any, stride: Any, weights: Values) -> None:
    """slots[r] += x[r][i] * weights[i] for each i in turn, with x[r][i] a float32 at x + r * stride + 4 * i."""
    for i, weight in enumerate(weights):
        for slot, address in zip(slots, _row_addresses(builder, x, stride, len(slots)), strict=True):
            scalar = load(builder, builder.add(address, I64(4 * i)), F32)
            operands = [splat(builder, scalar, LANES), weight, builder.load(slot)]
            builder.store(call_llvm(builder, "llvm.fma.v16f32", f32x16.one, operands), slot)


def _bf16_pair(builder: Any, address: Any) -> Values:
    """k and k + 1 from one load: bf16 is the upper half of a float32."""
    pairs = load(builder, address, i32x16.one)
    even = builder.shl(pairs, constant_lanes(I32(16)))
    odd = builder.and_(pairs, constant_lanes(I32(-65536)))
    return [builder.bitcast(half, f32x16.one) for half in (even, odd)]


def _one_f32(builder: Any, address: Any) -> Values:
    return [load(builder, address, f32x16.one)]


def _formats(builder: Any, pairing: Any) -> Iterator[Any]:
    """Yields the decoding of each format with the builder inside the branch for it."""
    with builder.if_else(builder.icmp_signed("==", pairing, I64(2))) as (paired, single):
        with paired:
            yield _bf16_pair
        with single:
            yield _one_f32


def _accumulate(builder: Any, decode: Any, slots: Values, x: Any, stride: Any, weight: Any, step: Any, k: Any) -> None:
    """slots += x[:, :k] @ weight[:k], `step` bytes from one decoded group of k to the next."""
    group = 2 if decode is _bf16_pair else 1
    whole = builder.sdiv(k, I64(group))
    with cgutils.for_range(builder, whole) as loop:
        weights = decode(builder, builder.add(weight, builder.mul(loop.index, step)))
        add_products(builder, slots, offset(builder, x, loop.index, 4 * group), stride, weights)
    if group == 2:
        with builder.if_then(builder.trunc(k, ir.IntType(1)), likely=False):
            weights = decode(builder, builder.add(weight, builder.mul(whole, step)))
            add_products(builder, slots, offset(builder, x, whole, 8), stride, weights[:1])


@by_rows(*[types.int64] * 9)
def product(
    builder: Any,
    rows: int,
    pairing: Any,
    x: Any,
    x_stride: Any,
    weight: Any,
    step: Any,
    k: Any,
    first: Any,
    out: Any,
    out_stride: Any,
) -> None:
    """out[r] = first + x[r, :k] @ weight[:k]; a lane of weight holds `pairing` k: two bf16 or one float32."""
    for decode in _formats(builder, pairing):
        slots = accumulators(builder, load(builder, first, f32x16.one), rows)
        _accumulate(builder, decode, slots, x, x_stride, weight, step, k)
        store_rows(builder, slots, out, out_stride)


@by_rows(*[types.int64] * 11)
def paged_product(
    builder: Any,
    rows: int,
    pairing: Any,
    p: Any,
    p_stride: Any,
    values: Any,
    table: Any,
    block_stride: Any,
    step: Any,
    block_size: Any,
    k: Any,
    out: Any,
    out_stride: Any,
) -> None:
    """out[r] = p[r, :k] @ values[:k]: values lie in blocks of `block_size` k, whose int32 numbers are at `table`."""
    for decode in _formats(builder, pairing):
        slots = accumulators(builder, ir.Constant(f32x16.one, None), rows)
        blocks = builder.sdiv(builder.add(k, builder.sub(block_size, I64(1))), block_size)
        with cgutils.for_range(builder, blocks) as loop:
            number = builder.sext(load(builder, offset(builder, table, loop.index, 4), I32), I64)
            block = builder.add(values, builder.mul(number, block_stride))
            done = builder.mul(loop.index, block_size)
            left = builder.sub(k, done)
            here = builder.select(builder.icmp_signed("<", left, block_size), left, block_size)
            x = offset(builder, p, done, 4)
            _accumulate(builder, decode, slots, x, p_stride, block, step, here)
        store_rows(builder, slots, out, out_stride)


def _pairs_multiply_add(builder: Any, a: Any, b: Any) -> Any:
    """a[2i] * b[2i] + a[2i+1] * b[2i+1] as int32, exact; vpmaddwd by name, for LLVM does not find it here."""
    if FEATURES.get("avx512bw"):
        return call_llvm(builder, "llvm.x86.avx512.pmaddw.d.512", i32x16.one, [a, b])
    if FEATURES.get("avx2"):
        half = ir.VectorType(I32, LANES // 2)
        halves = [[lane_part(builder, v, LANES, first) for v in (a, b)] for first in (0, LANES)]
        sums = [call_llvm(builder, "llvm.x86.avx2.pmadd.wd", half, pair) for pair in halves]
        return builder.shuffle_vector(*sums, lane_order(range(LANES)))
    products = []
    for first in (0, 1):
        order = lane_order(range(first, 2 * LANES, 2))
        wide = [builder.sext(builder.shuffle_vector(v, v, order), i32x16.one) for v in (a, b)]
        products.append(builder.mul(*wide))
    return builder.add(*products)


@by_rows(*[types.int64] * 6)
def product_i8(builder: Any, rows: int, x: Any, x_stride: Any, weight: Any, k: Any, out: Any, out_stride: Any) -> None:
    """out[r] = x[r, :k] @ weight[:k] as int32: x int16, weight int8 with a pair of k in each lane, k even."""
    bytes_loaded = ir.VectorType(ir.IntType(8), 2 * LANES)
    slots = accumulators(builder, ir.Constant(i32x16.one, None), rows)
    with cgutils.for_range(builder, builder.sdiv(k, I64(2))) as loop:
        address = offset(builder, weight, loop.index, 2 * LANES)
        weights = builder.sext(load(builder, address, bytes_loaded, align=1), i16x32.one)
        pairs = offset(builder, x, loop.index, 4)
        for slot, row in zip(slots, _row_addresses(builder, pairs, x_stride, rows), strict=True):
            pair = splat(builder, load(builder, row, I32), LANES)
            products = _pairs_multiply_add(builder, weights, builder.bitcast(pair, i16x32.one))
            builder.store(builder.add(builder.load(slot), products), slot)
    store_rows(builder, slots, out, out_stride)
