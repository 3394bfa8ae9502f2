"""Weights as float8 e4m3 with a scale a row, as compressed-tensors stores them; it knows no product and no GPU."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

LARGEST = 448.0
"""Of float8 e4m3fn."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fp8Weight:
    """weight = data * scale"""

    data: Tensor
    """[N, K] float8_e4m3fn"""
    scale: Tensor
    """[N, 1] bf16"""

    def dequantize(self) -> Tensor:
        """[N, K] fp32"""
        return self.data.float() * self.scale.float()


def quantize_fp8(weight: Tensor) -> Fp8Weight:
    """[N, K] fp32; the largest of a row becomes 448, against the scale as it is stored."""
    scale = (weight.abs().amax(dim=1, keepdim=True) / LARGEST).to(torch.bfloat16)
    divisor = torch.where(scale > 0, scale, 1.0).float()
    data = (weight / divisor).clamp(-LARGEST, LARGEST).to(torch.float8_e4m3fn)
    return Fp8Weight(data=data, scale=scale)
