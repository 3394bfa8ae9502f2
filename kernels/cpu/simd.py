"""SIMD vectors for numba: sixteen lanes as one numba type and the operations on them; knows no operation of a model.

numba has no vector types, so each one here is an LLVM vector, and LLVM splits sixteen lanes into what the
host has (two AVX2 registers, one AVX-512 register, four of NEON). Addresses are plain int64.
"""

from collections.abc import Callable, Iterable
from typing import Any

import llvmlite.binding
from llvmlite import ir
from numba import config, types
from numba.core.datamodel import models
from numba.extending import intrinsic, register_model

LANES = 16


def _cpu_features() -> dict[str, bool]:
    """What numba compiles for: the host, unless NUMBA_CPU_NAME or NUMBA_CPU_FEATURES ("+avx2,...") say otherwise."""
    if config.CPU_NAME is None and config.CPU_FEATURES is None:
        return dict(llvmlite.binding.get_host_cpu_features())
    return {feature[1:]: feature[0] == "+" for feature in (config.CPU_FEATURES or "").split(",") if feature}


FEATURES = _cpu_features()
F32, I64, I32 = ir.FloatType(), ir.IntType(64), ir.IntType(32)
I16, I8 = ir.IntType(16), ir.IntType(8)


class Vector(types.Type):  # type: ignore[misc]
    """`rows` LLVM vectors held as one value; a single vector has rows = 1."""

    def __init__(self, element: Any, lanes: int, rows: int = 1) -> None:
        self.element, self.lanes, self.rows = element, lanes, rows
        self.one = ir.VectorType(element, lanes)
        super().__init__(name=f"Vector({element}x{lanes}, rows={rows})")


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, manager: Any, vector: Vector) -> None:
        held = vector.one if vector.rows == 1 else ir.ArrayType(vector.one, vector.rows)
        super().__init__(manager, vector, held)


f32x16 = Vector(F32, LANES)
i32x16 = Vector(I32, LANES)
i16x32 = Vector(I16, 2 * LANES)
b1x16 = Vector(ir.IntType(1), LANES)
_SCALARS = {types.float32: (f32x16, F32), types.int32: (i32x16, I32)}


def pointer(builder: Any, address: Any, pointee: Any) -> Any:
    return builder.inttoptr(address, pointee.as_pointer())


def splat(builder: Any, scalar: Any, lanes: int) -> Any:
    """`scalar` in every lane."""
    single = ir.VectorType(scalar.type, lanes)
    first = builder.insert_element(ir.Constant(single, ir.Undefined), scalar, I32(0))
    return builder.shuffle_vector(first, first, lane_order([0] * lanes))


def lane_order(lanes: Iterable[int]) -> Any:
    order = list(lanes)
    return ir.Constant(ir.VectorType(I32, len(order)), order)


def lane_part(builder: Any, vector: Any, lanes: int, first: int) -> Any:
    return builder.shuffle_vector(vector, vector, lane_order(range(first, first + lanes)))


def call_llvm(builder: Any, name: str, result: Any, arguments: list[Any]) -> Any:
    function_type = ir.FunctionType(result, [argument.type for argument in arguments])
    module = builder.module
    declared = module.globals.get(name) or ir.Function(module, function_type, name=name)
    return builder.call(declared, arguments)


def operation(result: Any, *arguments: Any) -> Callable[[Callable[..., Any]], Any]:
    """Make `emit(builder, *values)` an intrinsic with a fixed signature."""

    def decorate(emit: Callable[..., Any]) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            emitted = emit(builder, *values)
            return context.get_dummy_value() if emitted is None else emitted

        names = ", ".join(f"a{i}" for i in range(len(arguments)))
        scope = {"signature": result(*arguments), "codegen": codegen}
        # numba reads the number of parameters off the function, so it needs a real one
        exec(f"def typer(typingctx, {names}):\n    return signature, codegen", scope)
        scope["typer"].__name__ = emit.__name__  # type: ignore[attr-defined]
        return intrinsic(scope["typer"])

    return decorate


def _loader(vector: Vector, align: int) -> Any:
    @operation(vector, types.int64)
    def load(builder: Any, address: Any) -> Any:
        loaded = builder.load(pointer(builder, address, vector.one))
        loaded.align = align
        return loaded

    return load


load_f32 = _loader(f32x16, 4)
load_i32 = _loader(i32x16, 4)


@operation(i16x32, types.int64)
def load_i8_pairs(builder: Any, address: Any) -> Any:
    """Thirty-two int8 as int16: two values a lane."""
    loaded = builder.load(pointer(builder, address, ir.VectorType(I8, 2 * LANES)))
    loaded.align = 1
    return builder.sext(loaded, i16x32.one)


@operation(f32x16, types.int64)
def load_bf16(builder: Any, address: Any) -> Any:
    loaded = builder.load(pointer(builder, address, ir.VectorType(I16, LANES)))
    loaded.align = 2
    wide = builder.shl(builder.zext(loaded, i32x16.one), constant_lanes(I32(16)))
    return builder.bitcast(wide, f32x16.one)


def constant_lanes(constant: Any) -> Any:
    return ir.Constant(ir.VectorType(constant.type, LANES), [constant.constant] * LANES)


@operation(types.void, types.int64, f32x16)
def store_f32(builder: Any, address: Any, value: Any) -> None:
    builder.store(value, pointer(builder, address, f32x16.one), align=4)


@operation(types.void, types.int64, i32x16)
def store_i32(builder: Any, address: Any, value: Any) -> None:
    builder.store(value, pointer(builder, address, i32x16.one), align=4)


@operation(types.void, types.int64, i32x16)
def store_i16(builder: Any, address: Any, value: Any) -> None:
    narrow = ir.VectorType(I16, LANES)
    builder.store(builder.trunc(value, narrow), pointer(builder, address, narrow), align=2)


@operation(f32x16, i32x16)
def low_bf16(builder: Any, pairs: Any) -> Any:
    """The even one of each lane's two bf16 values."""
    return builder.bitcast(builder.shl(pairs, constant_lanes(I32(16))), f32x16.one)


@operation(f32x16, i32x16)
def high_bf16(builder: Any, pairs: Any) -> Any:
    """The odd one of each lane's two bf16 values."""
    return builder.bitcast(builder.and_(pairs, constant_lanes(I32(-65536))), f32x16.one)


@operation(f32x16, f32x16, f32x16, f32x16)
def fma(builder: Any, a: Any, b: Any, c: Any) -> Any:
    return call_llvm(builder, "llvm.fma.v16f32", f32x16.one, [a, b, c])


def _binary(method: str, vector: Vector, name: str) -> Any:
    def emit(builder: Any, a: Any, b: Any) -> Any:
        return getattr(builder, method)(a, b)

    emit.__name__ = name
    return operation(vector, vector, vector)(emit)


add, sub = _binary("fadd", f32x16, "add"), _binary("fsub", f32x16, "sub")
mul, div = _binary("fmul", f32x16, "mul"), _binary("fdiv", f32x16, "div")
add_i32, sub_i32 = _binary("add", i32x16, "add_i32"), _binary("sub", i32x16, "sub_i32")
shift_left, shift_right = _binary("shl", i32x16, "shift_left"), _binary("ashr", i32x16, "shift_right")
shift_right_zeros = _binary("lshr", i32x16, "shift_right_zeros")
and_i32, or_i32 = _binary("and_", i32x16, "and_i32"), _binary("or_", i32x16, "or_i32")


@operation(f32x16, f32x16, f32x16)
def maximum(builder: Any, a: Any, b: Any) -> Any:
    # one vmaxps: a > b ? a : b, so a NaN in either gives b
    return builder.select(builder.fcmp_ordered(">", a, b), a, b)


@operation(f32x16, f32x16, f32x16)
def minimum(builder: Any, a: Any, b: Any) -> Any:
    return builder.select(builder.fcmp_ordered("<", a, b), a, b)


@operation(b1x16, f32x16, f32x16)
def less(builder: Any, a: Any, b: Any) -> Any:
    return builder.fcmp_ordered("<", a, b)


@operation(b1x16, i32x16, i32x16)
def less_i32(builder: Any, a: Any, b: Any) -> Any:
    return builder.icmp_signed("<", a, b)


@operation(f32x16, b1x16, f32x16, f32x16)
def select(builder: Any, condition: Any, a: Any, b: Any) -> Any:
    return builder.select(condition, a, b)


@operation(types.int64, b1x16)
def mask_bits(builder: Any, mask: Any) -> Any:
    """Lane i as bit i."""
    return builder.zext(builder.bitcast(mask, ir.IntType(LANES)), ir.IntType(64))


@operation(f32x16, f32x16)
def absolute(builder: Any, a: Any) -> Any:
    return call_llvm(builder, "llvm.fabs.v16f32", f32x16.one, [a])


@operation(f32x16, f32x16)
def round_even(builder: Any, a: Any) -> Any:
    return call_llvm(builder, "llvm.nearbyint.v16f32", f32x16.one, [a])


@operation(i32x16, f32x16)
def to_i32(builder: Any, a: Any) -> Any:
    return builder.fptosi(a, i32x16.one)


@operation(f32x16, i32x16)
def to_f32(builder: Any, a: Any) -> Any:
    return builder.sitofp(a, f32x16.one)


@operation(f32x16, i32x16)
def as_f32(builder: Any, a: Any) -> Any:
    return builder.bitcast(a, f32x16.one)


@operation(i32x16, f32x16)
def as_i32(builder: Any, a: Any) -> Any:
    return builder.bitcast(a, i32x16.one)


@operation(f32x16, types.float32)
def splat_f32(builder: Any, a: Any) -> Any:
    return splat(builder, a, LANES)


@operation(i32x16, types.int32)
def splat_i32(builder: Any, a: Any) -> Any:
    return splat(builder, a, LANES)


@operation(i32x16)
def lane_numbers(builder: Any) -> Any:
    return ir.Constant(i32x16.one, list(range(LANES)))


def _reduce(builder: Any, vector: Any, combine: Callable[[Any, Any], Any]) -> Any:
    """A fixed tree: halves are combined until one lane is left."""
    lanes = LANES
    while lanes > 1:
        lanes //= 2
        low, high = (lane_part(builder, vector, lanes, first) for first in (0, lanes))
        vector = combine(low, high)
    return builder.extract_element(vector, I32(0))


@operation(types.float32, f32x16)
def lane_sum(builder: Any, vector: Any) -> Any:
    return _reduce(builder, vector, builder.fadd)


@operation(types.float32, f32x16)
def lane_max(builder: Any, vector: Any) -> Any:
    return _reduce(builder, vector, lambda a, b: builder.select(builder.fcmp_ordered(">", a, b), a, b))


def _scalar_loader(numba_type: Any, pointee: Any, align: int) -> Any:
    @operation(numba_type, types.int64)
    def load(builder: Any, address: Any) -> Any:
        loaded = builder.load(pointer(builder, address, pointee))
        loaded.align = align
        return loaded

    return load


def _scalar_storer(numba_type: Any, pointee: Any, align: int) -> Any:
    @operation(types.void, types.int64, numba_type)
    def store(builder: Any, address: Any, value: Any) -> None:
        builder.store(value, pointer(builder, address, pointee), align=align)

    return store


get_f32, set_f32 = _scalar_loader(types.float32, F32, 4), _scalar_storer(types.float32, F32, 4)
get_i32, set_i32 = _scalar_loader(types.int32, I32, 4), _scalar_storer(types.int32, I32, 4)
get_i64, set_i64 = (make(types.int64, ir.IntType(64), 8) for make in (_scalar_loader, _scalar_storer))
get_f64, set_f64 = (make(types.float64, ir.DoubleType(), 8) for make in (_scalar_loader, _scalar_storer))
set_i16 = _scalar_storer(types.int16, I16, 2)


@operation(types.int32, types.float32)
def f32_bits(builder: Any, value: Any) -> Any:
    return builder.bitcast(value, I32)


@operation(types.float32, types.int64)
def f32_of_bits(builder: Any, bits: Any) -> Any:
    """The float32 whose bits are the low half of a launch argument."""
    return builder.bitcast(builder.trunc(bits, I32), F32)


@operation(f32x16, types.int64, types.int64)
def signed_byte_pairs(builder: Any, address: Any, odd: Any) -> Any:
    """Of sixteen pairs of int8 the even or the odd ones, as float32."""
    loaded = builder.load(pointer(builder, address, ir.VectorType(I16, LANES)))
    loaded.align = 1
    wide = builder.sext(loaded, i32x16.one)
    # even: bits 0-7, so shift left by 24; odd: bits 8-15, by 16
    left = builder.sub(I32(24), builder.shl(builder.trunc(odd, I32), I32(3)))
    raised = builder.shl(wide, splat(builder, left, LANES))
    return builder.sitofp(builder.ashr(raised, constant_lanes(I32(24))), f32x16.one)


@operation(types.float32, f32x16)
def first_lane(builder: Any, vector: Any) -> Any:
    return builder.extract_element(vector, I32(0))


@operation(types.void, types.int64)
def prefetch(builder: Any, address: Any) -> None:
    """Ask for the cache line; any address is allowed."""
    byte = pointer(builder, address, I8)
    function_type = ir.FunctionType(ir.VoidType(), [byte.type, I32, I32, I32])
    module, name = builder.module, "llvm.prefetch.p0"
    declared = module.globals.get(name) or ir.Function(module, function_type, name=name)
    # read, keep in all levels, data
    builder.call(declared, [byte, I32(0), I32(3), I32(1)])
