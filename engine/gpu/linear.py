"""y = x W^T on a GPU, one class per weight format with the same two forms; it knows no layer and no checkpoint.

`rows` multiplies any number of rows. `row` is for a single one, where every kernel launch shows: the norm before the
product and the sum or the gate after it happen inside it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from kernels.gpu.four_bit_gemv import Norm, four_bit_gemv
from kernels.gpu.four_bit_layout import PackedFourBit
from kernels.gpu.four_bit_matmul import four_bit_matmul
from kernels.gpu.fp8 import PackedFp8, fp8_matmul
from kernels.gpu.gemv import gemv
from kernels.gpu.int8 import Int8Rows, int8_matmul
from kernels.gpu.quantized_rows import QuantizedRows

Activation = Tensor | QuantizedRows
Quantization = Literal["fp8", "int8"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RowEnds:
    """What goes into a one-row product besides the product."""

    norm: tuple[Tensor, float] | None = None
    """Weight [K] and eps of the RMS norm that x still needs."""
    residual: Tensor | None = None
    """[1, N], to which the product is added in place."""
    gated: bool = False
    """The rows are those of a gate, then those of what it gates: silu(gate) * up comes out."""


PLAIN = RowEnds()


class GpuLinear(Protocol):
    """A weight of [N, K] on the device, perhaps with a bias [N] in fp32."""

    @property
    def nbytes(self) -> int: ...

    @property
    def wants(self) -> Quantization | None:
        """The form in which `rows` takes many rows without quantising them itself."""
        ...

    def rows(self, x: Activation) -> Tensor:
        """[M, K] bf16 or quantised -> [M, N] bf16"""
        ...

    def row(self, x: Tensor, ends: RowEnds = PLAIN) -> Tensor:
        """[1, K] bf16 -> [1, N] (or [1, N / 2] gated) bf16"""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class DenseLinear:
    weight: Tensor
    bias: Tensor | None = None
    wants: Quantization | None = None

    @property
    def nbytes(self) -> int:
        return self.weight.nbytes

    def rows(self, x: Activation) -> Tensor:
        assert isinstance(x, Tensor)
        bias = None if self.bias is None else self.bias.to(self.weight.dtype)
        return functional.linear(x, self.weight, bias)

    def row(self, x: Tensor, ends: RowEnds = PLAIN) -> Tensor:
        return gemv(
            x,
            self.weight,
            ends.residual,
            norm=ends.norm,
            residual=ends.residual,
            gated=ends.gated,
            bias=self.bias,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """The last product: logits in fp32, since bf16 near 20 has steps of 0.125 and would make ties."""

    weight: Tensor

    @property
    def nbytes(self) -> int:
        return self.weight.nbytes

    def rows(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        """[M, K] -> [M, N] fp32"""
        out = x.new_empty(len(x), len(self.weight), dtype=torch.float32) if out is None else out
        if x.is_cuda and x.dtype != torch.float32:
            return torch.mm(x, self.weight.T, out_dtype=torch.float32, out=out)
        return torch.mm(x.float(), self.weight.float().T, out=out)

    def row(self, x: Tensor, norm: tuple[Tensor, float], out: Tensor) -> Tensor:
        """[1, K] -> [1, N] fp32"""
        return gemv(x, self.weight, out, norm=norm)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fp8Linear:
    packed: PackedFp8
    bias: Tensor | None = None
    wants: Quantization | None = "fp8"

    @property
    def nbytes(self) -> int:
        return self.packed.nbytes

    def rows(self, x: Activation) -> Tensor:
        return fp8_matmul(x, self.packed, bias=self.bias)

    def row(self, x: Tensor, ends: RowEnds = PLAIN) -> Tensor:
        return gemv(
            x,
            self.packed.data,
            ends.residual,
            scale=self.packed.scale,
            norm=ends.norm,
            residual=ends.residual,
            gated=ends.gated,
            bias=self.bias,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Int8Linear:
    """LLM.int8(): the outliers of the activations are taken apart, so x comes as it is."""

    packed: Int8Rows
    outlier_threshold: float | None
    bias: Tensor | None = None
    wants: Quantization | None = None

    @property
    def nbytes(self) -> int:
        return self.packed.nbytes

    def rows(self, x: Activation) -> Tensor:
        assert isinstance(x, Tensor)
        return int8_matmul(x, self.packed, bias=self.bias, outlier_threshold=self.outlier_threshold)

    def row(self, x: Tensor, ends: RowEnds = PLAIN) -> Tensor:
        return gemv(
            x,
            self.packed.qdata,
            ends.residual,
            scale=self.packed.scale,
            norm=ends.norm,
            residual=ends.residual,
            gated=ends.gated,
            bias=self.bias,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class FourBitLinear:
    """GPTQ's and AWQ's integers, or NF4: 4-bit words, unpacked by whichever kernel suits the number of rows."""

    packed: PackedFourBit
    bias: Tensor | None = None
    wants: Quantization | None = None

    @property
    def nbytes(self) -> int:
        return self.packed.nbytes

    def rows(self, x: Activation) -> Tensor:
        assert isinstance(x, Tensor)
        return four_bit_matmul(x, self.packed, bias=self.bias)

    def row(self, x: Tensor, ends: RowEnds = PLAIN) -> Tensor:
        return four_bit_gemv(
            x,
            self.packed,
            ends.residual,
            norm=None if ends.norm is None else Norm(weight=ends.norm[0], eps=ends.norm[1]),
            residual=ends.residual,
            gated=ends.gated,
            bias=self.bias,
        )
