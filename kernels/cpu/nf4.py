"""The 4-bit NormalFloat product over packed panels: a weight is table[code] * block scale; knows only bytes.

A code is looked up a byte of its float32 at a time (vpshufb has sixteen entries of a byte, two a cycle): 12 shuffles
for 32 weights.
"""

import struct
from typing import Any

from llvmlite import ir
from torch import Tensor

from kernels.cpu import four_bit
from kernels.cpu.compile import kernel
from kernels.cpu.four_bit import BYTES, FourBit, byte_lanes, floats_of_planes, multiply_item
from kernels.cpu.simd import FEATURES, I64, call_llvm, f32x16
from kernels.cpu.tile import Values, load
from kernels.packing import NF4_TABLE


def _byte_planes() -> Values:
    """Byte 0, 1, 2 and 3 of each entry's float32, repeated for both 16-byte halves of a register."""
    entries = [struct.pack("<f", value) for value in NF4_TABLE]
    return [byte_lanes([entry[plane] for entry in entries]) for plane in range(4)]


def _look_up(builder: Any, plane: Any, indices: Any) -> Any:
    if FEATURES.get("avx2"):
        return call_llvm(builder, "llvm.x86.avx2.pshuf.b", plane.type, [plane, indices])
    found = ir.Constant(plane.type, ir.Undefined)
    for byte in range(BYTES):
        entry = builder.extract_element(indices, I64(byte))
        found = builder.insert_element(found, builder.extract_element(plane, entry), I64(byte))
    return found


def _block_scale(builder: Any, scales: Any, zeros: Any) -> Values:
    return [load(builder, scales, f32x16.one)]


def _weights(builder: Any, codes: Any, block: Values) -> Values:
    planes = [_look_up(builder, plane, codes) for plane in _byte_planes()]
    return [builder.fmul(value, block[0]) for value in floats_of_planes(builder, planes)]


_FORMAT = FourBit(_block_scale, _weights)
_product, _decode = _FORMAT.product, _FORMAT.decode


@kernel
def _nf4_panels(args, item, worker) -> None:
    multiply_item(_product, _decode, args, item, worker)


def matmul(x: Tensor, codes: Tensor, scales: Tensor, block: int, out_features: int, bias: Tensor | None) -> Tensor:
    """x [M, K] fp32, codes [panels, K/4, 32] bytes, scales [panels, K/block, LANES] fp32."""
    return four_bit.matmul(_nf4_panels, x, codes, scales, None, block, out_features, bias)
