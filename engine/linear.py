"""y = x W^T (+ bias): one class per weight format, all with the same forward; it knows no layer and no checkpoint."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Protocol

import torch
from torch import Tensor

from cluster.errors import UserError
from cluster.variants import METHODS, MOST_PACKED_BITS, Method, Variant
from engine.quantized_checkpoint import StoredMatrix
from kernels.checkpoint_layouts import IntegerWeight
from kernels.dense_matmul import PackedDense, dense_matmul, gather_rows, pack_dense
from kernels.int4_matmul import PackedInt4Panels, int4_matmul, pack_int4
from kernels.int8_matmul import Int8Weight, PackedInt8, int8_matmul, pack_int8, quantize_int8
from kernels.nf4_matmul import Nf4Weight, PackedNf4, nf4_matmul, pack_nf4, quantize_nf4
from kernels.packing import LANES

Packed = PackedDense | PackedInt8 | PackedNf4 | PackedInt4Panels
FLOAT_DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
NF4_BLOCK = 64


class Linear(Protocol):
    """A packed weight of [N, K], perhaps with a bias."""

    @property
    def nbytes(self) -> int: ...

    def forward(self, x: Tensor) -> Tensor:
        """[M, K] fp32 -> [M, N] fp32; a row of the result depends on that row of x alone."""
        ...


class DenseLinear:
    """Weights as they are, bf16 or fp32; sums in fp32."""

    __slots__ = ("bias", "packed")

    def __init__(self, packed: PackedDense, bias: Tensor | None = None) -> None:
        self.packed, self.bias = packed, bias

    @property
    def nbytes(self) -> int:
        return self.packed.nbytes

    def forward(self, x: Tensor) -> Tensor:
        return dense_matmul(x, self.packed, self.bias)

    def rows(self, ids: Tensor) -> Tensor:
        """Rows of the weight as fp32: a tied head is the embedding too, held once."""
        return gather_rows(ids, self.packed)


class Int8Linear:
    """LLM.int8(): int8 weights by row, int8 activations by row, outliers beyond the threshold apart in fp32."""

    __slots__ = ("activation_bits", "bias", "outlier_threshold", "packed")

    def __init__(
        self, packed: PackedInt8, bias: Tensor | None, outlier_threshold: float | None, activation_bits: int = 8
    ) -> None:
        self.packed, self.bias = packed, bias
        self.outlier_threshold, self.activation_bits = outlier_threshold, activation_bits

    @property
    def nbytes(self) -> int:
        return self.packed.nbytes

    def forward(self, x: Tensor) -> Tensor:
        return int8_matmul(x, self.packed, self.bias, self.outlier_threshold, self.activation_bits)

    def rows(self, ids: Tensor) -> Tensor:
        """Rows of the weight as fp32, as DenseLinear has it."""
        # A lane's pair of int8 as one int16: indexing then reads the row and not the fifteen beside it.
        pairs = self.packed.panels.view(torch.int16).squeeze(-1)
        rows = pairs[ids // LANES, :, ids % LANES].view(torch.int8)[:, : self.packed.in_features]
        return rows.float() * self.packed.scale[ids, None]


class Nf4Linear:
    """4-bit NormalFloat weights in blocks of 64 with an fp32 absmax each; activations and sums in fp32."""

    __slots__ = ("bias", "packed")

    def __init__(self, packed: PackedNf4, bias: Tensor | None = None) -> None:
        self.packed, self.bias = packed, bias

    @property
    def nbytes(self) -> int:
        return self.packed.nbytes

    def forward(self, x: Tensor) -> Tensor:
        return nf4_matmul(x, self.packed, self.bias)


class Int4Linear:
    """GPTQ's and AWQ's integers of up to 4 bits in groups with a scale and a zero; activations and sums in fp32."""

    __slots__ = ("bias", "packed")

    def __init__(self, packed: PackedInt4Panels, bias: Tensor | None = None) -> None:
        self.packed, self.bias = packed, bias

    @property
    def nbytes(self) -> int:
        return self.packed.nbytes

    def forward(self, x: Tensor) -> Tensor:
        return int4_matmul(x, self.packed, self.bias)


def pack(weight: StoredMatrix, method: Method, dtype: str) -> Packed:
    """A checkpoint's matrix as the kernels read it: its own integers, or floats quantised by the method."""
    if isinstance(weight, Tensor):
        return _pack_floats(weight, method, dtype)
    if isinstance(weight, Int8Weight):
        return pack_int8(weight)
    if isinstance(weight, Nf4Weight):
        return pack_nf4(weight)
    if isinstance(weight, IntegerWeight):
        if weight.bits > MOST_PACKED_BITS:
            return pack_dense(weight.dequantize().to(FLOAT_DTYPES[dtype]))
        return pack_int4(weight)
    raise UserError(f"method {method!r} is not run on a CPU; it runs {', '.join(METHODS['cpu'])}")


def _pack_floats(weight: Tensor, method: Method, dtype: str) -> Packed:
    """gptq and awq leave a matrix that their checkpoint holds in floats as it is."""
    match method:
        case "none" | "gptq" | "awq":
            return pack_dense(weight.to(FLOAT_DTYPES[dtype]))
        case "int8":
            return pack_int8(quantize_int8(weight))
        case "nf4":
            if weight.shape[1] % NF4_BLOCK:
                raise UserError(f"method nf4 needs rows of a multiple of {NF4_BLOCK}, this model has {weight.shape[1]}")
            return pack_nf4(quantize_nf4(weight, NF4_BLOCK))
        case _:
            raise UserError(f"method {method!r} is not run on a CPU; it runs {', '.join(METHODS['cpu'])}")


def on_device(packed: Packed, device: str) -> Packed:
    tensors = {field.name: getattr(packed, field.name) for field in fields(packed)}
    moved = {name: value.to(device) for name, value in tensors.items() if isinstance(value, Tensor)}
    return replace(packed, **moved)


def linear_of(packed: Packed, bias: Tensor | None, variant: Variant) -> Linear:
    if isinstance(packed, PackedInt8):
        return Int8Linear(packed, bias, variant.outlier_threshold, variant.activation_bits)
    if isinstance(packed, PackedInt4Panels):
        return Int4Linear(packed, bias)
    return Nf4Linear(packed, bias) if isinstance(packed, PackedNf4) else DenseLinear(packed, bias)
