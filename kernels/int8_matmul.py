"""x @ weight.T with LLM.int8() weights and activations (Dettmers et al. 2022); does not know which layer it is.

Weights: int8 with one scale per output row (absmax / 127). Activations: int8 with one scale per row, except the
outliers |x| >= threshold, which are multiplied in fp32. bitsandbytes takes a column apart for the whole batch when one
of its rows has an outlier there; here each row takes its own apart, so that its result does not depend on the batch.

With more than 8 activation bits it is no longer LLM.int8(); the CPU path multiplies pairs of int16 anyway: no cost.
"""

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from kernels import packing


@dataclass(frozen=True, slots=True, kw_only=True)
class Int8Weight:
    qdata: Tensor
    """[N, K] int8"""
    scale: Tensor
    """[N] fp32: weight = qdata * scale"""


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedInt8:
    panels: Tensor
    """[panels, K/2, LANES, 2] int8, K padded to LANES"""
    scale: Tensor
    """[panels * LANES] fp32"""
    out_features: int
    in_features: int

    @property
    def nbytes(self) -> int:
        return self.panels.nbytes + self.scale.nbytes


def quantize_int8(weight: Tensor) -> Int8Weight:
    weight = weight.float()
    absmax = weight.abs().amax(dim=1)
    inverse = torch.where(absmax > 0, 127.0 / absmax, 0.0)
    qdata = torch.round(weight * inverse[:, None]).to(torch.int8)
    return Int8Weight(qdata=qdata, scale=absmax / 127.0)


def dequantize_int8(weight: Int8Weight) -> Tensor:
    return weight.qdata.float() * weight.scale[:, None]


def pack_int8(weight: Int8Weight) -> PackedInt8:
    out_features, in_features = weight.qdata.shape
    panels = packing.panels_of(packing.pad_to(weight.qdata, 1, packing.LANES), 2)
    scale = packing.pad_to(weight.scale.float(), 0, packing.LANES)
    return PackedInt8(panels=panels, scale=scale, out_features=out_features, in_features=in_features)


def unpack_int8(packed: PackedInt8) -> Int8Weight:
    qdata = packing.rows_of(packed.panels, packed.out_features, packed.in_features)
    return Int8Weight(qdata=qdata, scale=packed.scale[: packed.out_features])


def int8_matmul(
    x: Tensor,
    weight: PackedInt8,
    bias: Tensor | None = None,
    outlier_threshold: float | None = 6.0,
    activation_bits: int = 8,
) -> Tensor:
    """[M, K] fp32 -> [M, N] fp32; a threshold of 0 or None takes no outlier apart."""
    if not x.is_cpu:
        return int8_matmul_reference(x, weight, bias, outlier_threshold, activation_bits)
    threshold = outlier_threshold or float("inf")
    levels = activation_levels(activation_bits, weight.in_features)
    return _cpu().matmul(x, weight.panels, weight.scale, weight.out_features, bias, threshold, levels)


def activation_levels(bits: int, in_features: int) -> int:
    """The largest activation integer: 2^(bits-1) - 1, or less where a sum of K products would pass int32."""
    return min(2 ** (bits - 1) - 1, (2**31 - 1) // (127 * in_features))


def int8_matmul_reference(
    x: Tensor,
    weight: PackedInt8,
    bias: Tensor | None = None,
    outlier_threshold: float | None = 6.0,
    activation_bits: int = 8,
) -> Tensor:
    rows = unpack_int8(weight)
    levels = float(activation_levels(activation_bits, weight.in_features))
    x = x.float()
    outlier = x.abs() >= (outlier_threshold or float("inf"))
    regular = x.masked_fill(outlier, 0.0)
    absmax = regular.abs().amax(dim=1, keepdim=True)
    inverse = torch.where(absmax > 0, levels / absmax, 0.0)
    quantized = torch.round(regular * inverse).double()
    # sums of int8 products are exact in double
    out = (quantized @ rows.qdata.double().T).float() * (absmax / levels)
    out = out + x.masked_fill(~outlier, 0.0) @ rows.qdata.float().T
    out = out * rows.scale
    return out if bias is None else out + bias.float()


@cache
def _cpu() -> Any:
    from kernels.cpu import int8

    return int8
