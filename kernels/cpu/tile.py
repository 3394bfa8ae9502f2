"""Register tiles: a few rows of sixteen accumulators and the steps that feed them; knows nothing of where operands come from.

A step is one fused multiply-add (or one exact integer multiply-add) per accumulator, so an output element is
one sequential chain over k whatever the number of rows in the tile.
"""

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from kernels.cpu.compile import inline
from kernels.cpu.simd import (
    _F32,
    _I32,
    HOST_FEATURES,
    LANES,
    Vector,
    _order,
    _part,
    call_llvm,
    f32x16,
    i16x32,
    i32x16,
    pointer,
    splat,
)


def _rows(builder: Any, address: Any, stride: Any, tile: Vector) -> list[Any]:
    """The address of each row of a matrix whose rows lie `stride` bytes apart."""
    addresses = [address]
    for _ in range(tile.rows - 1):
        addresses.append(builder.add(addresses[-1], stride))
    return addresses


def _row(builder: Any, value: Any, tile: Vector, row: int) -> Any:
    return value if tile.rows == 1 else builder.extract_value(value, row)


def _collect(builder: Any, vectors: list[Any], tile: Vector) -> Any:
    if tile.rows == 1:
        return vectors[0]
    value = ir.Constant(ir.ArrayType(tile.one, tile.rows), ir.Undefined)
    for row, vector in enumerate(vectors):
        value = builder.insert_value(value, vector, row)
    return value


def _zero_tile(vector: Vector) -> Any:
    @intrinsic(prefer_literal=True)
    def zero_tile(typingctx: Any, rows: Any) -> Any:
        tile = Vector(vector.element, vector.lanes, rows.literal_value)

        def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            return _collect(builder, [ir.Constant(tile.one, None)] * tile.rows, tile)

        return tile(rows), codegen

    return zero_tile


zero_tile = _zero_tile(f32x16)
zero_tile_i32 = _zero_tile(i32x16)


@intrinsic
def load_tile(typingctx: Any, like: Any, address: Any, stride: Any) -> Any:
    """Read a tile of the type of `like` from rows `stride` bytes apart."""

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        loaded = []
        for row in _rows(builder, values[1], values[2], like):
            loaded.append(builder.load(pointer(builder, row, like.one)))
            loaded[-1].align = 4
        return _collect(builder, loaded, like)

    return like(like, types.int64, types.int64), codegen


@intrinsic
def store_tile(typingctx: Any, tile: Any, address: Any, stride: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        for number, row in enumerate(_rows(builder, values[1], values[2], tile)):
            builder.store(_row(builder, values[0], tile, number), pointer(builder, row, tile.one), align=4)
        return context.get_dummy_value()

    return types.void(tile, types.int64, types.int64), codegen


@intrinsic
def tile_fma(typingctx: Any, tile: Any, x: Any, stride: Any, weight: Any) -> Any:
    """tile[r] += x[r] * weight, with x[r] one float32 at x + r * stride, in every lane."""

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        summed = []
        for number, row in enumerate(_rows(builder, values[1], values[2], tile)):
            scalar = builder.load(pointer(builder, row, _F32))
            scalar.align = 4
            operands = [splat(builder, scalar, LANES), values[3], _row(builder, values[0], tile, number)]
            summed.append(call_llvm(builder, "llvm.fma.v16f32", f32x16.one, operands))
        return _collect(builder, summed, tile)

    return tile(tile, types.int64, types.int64, f32x16), codegen


def _pairs_multiply_add(builder: Any, a: Any, b: Any) -> Any:
    """a[2i] * b[2i] + a[2i+1] * b[2i+1] as int32, exact; vpmaddwd by name, for LLVM does not find it here."""
    if HOST_FEATURES.get("avx512bw"):
        return call_llvm(builder, "llvm.x86.avx512.pmaddw.d.512", i32x16.one, [a, b])
    if HOST_FEATURES.get("avx2"):
        half = ir.VectorType(_I32, LANES // 2)
        products = [
            call_llvm(builder, "llvm.x86.avx2.pmadd.wd", half, [_part(builder, v, LANES, first) for v in (a, b)])
            for first in (0, LANES)
        ]
        return builder.shuffle_vector(*products, _order(range(LANES)))
    products = []
    for first in (0, 1):
        order = _order(range(first, 2 * LANES, 2))
        wide = [builder.sext(builder.shuffle_vector(v, v, order), i32x16.one) for v in (a, b)]
        products.append(builder.mul(*wide))
    return builder.add(*products)


@intrinsic
def tile_multiply_add(typingctx: Any, tile: Any, x: Any, stride: Any, weight: Any) -> Any:
    """tile[r] += x[r][0] * weight[0] + x[r][1] * weight[1], with x[r] two int16 at x + r * stride."""

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        summed = []
        for number, row in enumerate(_rows(builder, values[1], values[2], tile)):
            pair = builder.load(pointer(builder, row, _I32))
            pair.align = 4
            activations = builder.bitcast(splat(builder, pair, LANES), i16x32.one)
            product = _pairs_multiply_add(builder, values[3], activations)
            summed.append(builder.add(_row(builder, values[0], tile, number), product))
        return _collect(builder, summed, tile)

    return tile(tile, types.int64, types.int64, i16x32), codegen


@inline
def with_rows(step, rows, *arguments):
    """step(tile, *arguments) with a float32 tile of that many rows, at most six: 12 of AVX2's 16 registers."""
    if rows == 1:
        step(zero_tile(1), *arguments)
    elif rows == 2:
        step(zero_tile(2), *arguments)
    elif rows == 3:
        step(zero_tile(3), *arguments)
    elif rows == 4:
        step(zero_tile(4), *arguments)
    elif rows == 5:
        step(zero_tile(5), *arguments)
    else:
        step(zero_tile(6), *arguments)


@inline
def with_rows_i32(step, rows, *arguments):
    if rows == 1:
        step(zero_tile_i32(1), *arguments)
    elif rows == 2:
        step(zero_tile_i32(2), *arguments)
    elif rows == 3:
        step(zero_tile_i32(3), *arguments)
    elif rows == 4:
        step(zero_tile_i32(4), *arguments)
    elif rows == 5:
        step(zero_tile_i32(5), *arguments)
    else:
        step(zero_tile_i32(6), *arguments)


ROWS = 6


@inline
def tile_rows(rows, tiles):
    """The rows of the next of `tiles` tiles that share `rows` evenly: 8 rows are 4 + 4, not 6 + 2."""
    return (rows + tiles - 1) // tiles
