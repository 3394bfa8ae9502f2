"""y = x W^T on a GPU, one class per weight format with the same forms; it knows no layer and no checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from kernels.gpu.activation import silu_mul
from kernels.gpu.dense import dense_rows
from kernels.gpu.four_bit_gemv import four_bit_gemv
from kernels.gpu.four_bit_layout import PackedFourBit
from kernels.gpu.four_bit_matmul import four_bit_matmul
from kernels.gpu.fp8 import PackedFp8, fp8_matmul
from kernels.gpu.gemv import gemv
from kernels.gpu.int8 import Int8Rows, int8_matmul
from kernels.gpu.quantized_rows import QuantizedRows

Activation = Tensor | QuantizedRows
Quantization = Literal["fp8", "int8"]


class GpuLinear(Protocol):
    """A weight of [N, K] on the device, perhaps with a bias [N] in fp32."""

    @property
    def nbytes(self) -> int: ...

    def wants(self, num_rows: int) -> Quantization | None:
        """The form in which so many rows are best handed over, by the norm or the gate that makes them."""
        ...

    def rows(self, x: Activation) -> Tensor:
        """[M, K] bf16, or quantised -> [M, N] bf16"""
        ...

    def gated(self, x: Activation, quantize: Quantization | None = None) -> Activation:
        """The rows are those of a gate, then those of what it gates: [M, K] -> silu(gate) * up, [M, N / 2]."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class DenseLinear:
    weight: Tensor
    bias: Tensor | None = None

    @property
    def nbytes(self) -> int:
        return self.weight.nbytes

    def wants(self, num_rows: int) -> Quantization | None:
        return None

    def rows(self, x: Activation) -> Tensor:
        assert isinstance(x, Tensor)
        return dense_rows(x, self.weight, bias=self.bias)

    def gated(self, x: Activation, quantize: Quantization | None = None) -> Activation:
        assert isinstance(x, Tensor)
        if len(x) == 1:
            return gemv(x, self.weight, gated=True, bias=self.bias)
        return silu_mul(self.rows(x), quantize=quantize)


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
        return dense_rows(x, self.weight, out)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fp8Linear:
    packed: PackedFp8
    bias: Tensor | None = None

    @property
    def nbytes(self) -> int:
        return self.packed.nbytes

    def wants(self, num_rows: int) -> Quantization | None:
        return "fp8" if num_rows > 1 else None

    def rows(self, x: Activation) -> Tensor:
        return fp8_matmul(x, self.packed, bias=self.bias)

    def gated(self, x: Activation, quantize: Quantization | None = None) -> Activation:
        if isinstance(x, Tensor) and len(x) == 1:
            return gemv(x, self.packed.data, scale=self.packed.scale, gated=True, bias=self.bias)
        return silu_mul(self.rows(x), quantize=quantize)


@dataclass(frozen=True, slots=True, kw_only=True)
class Int8Linear:
    """LLM.int8(): the outliers of the activations are taken apart, so x comes as it is."""

    packed: Int8Rows
    outlier_threshold: float | None
    bias: Tensor | None = None

    @property
    def nbytes(self) -> int:
        return self.packed.nbytes

    def wants(self, num_rows: int) -> Quantization | None:
        return None

    def rows(self, x: Activation) -> Tensor:
        assert isinstance(x, Tensor)
        return int8_matmul(x, self.packed, bias=self.bias, outlier_threshold=self.outlier_threshold)

    def gated(self, x: Activation, quantize: Quantization | None = None) -> Activation:
        assert isinstance(x, Tensor)
        if len(x) == 1:
            return gemv(x, self.packed.qdata, scale=self.packed.scale, gated=True, bias=self.bias)
        return silu_mul(self.rows(x), quantize=quantize)


@dataclass(frozen=True, slots=True, kw_only=True)
class FourBitLinear:
    """GPTQ's and AWQ's integers, or NF4: 4-bit words, unpacked by whichever kernel suits the number of rows."""

    packed: PackedFourBit
    bias: Tensor | None = None

    @property
    def nbytes(self) -> int:
        return self.packed.nbytes

    def wants(self, num_rows: int) -> Quantization | None:
        return None

    def rows(self, x: Activation) -> Tensor:
        assert isinstance(x, Tensor)
        return four_bit_matmul(x, self.packed, bias=self.bias)

    def gated(self, x: Activation, quantize: Quantization | None = None) -> Activation:
        assert isinstance(x, Tensor)
        if len(x) == 1:
            return four_bit_gemv(x, self.packed, gated=True, bias=self.bias)
        return silu_mul(self.rows(x), quantize=quantize)
