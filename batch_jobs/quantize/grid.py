"""Affine integer grids and rounding to the nearest of their values; it knows neither inputs nor checkpoints.

weight = (code - zero) * scale with codes 0 .. 2^bits - 1, one scale and zero a group of columns in a row. Scales are
fp16, as the checkpoint's layouts hold them, and codes are chosen against the scale as stored: with an fp32 scale that
is rounded afterwards, the largest code of eight bits would be off by up to 255 * 2^-11, an eighth of a step.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.checkpoint_layouts import IntegerWeight

SMALLEST_SCALE = 2.0**-24
"""fp16's smallest positive number: a scale of zero could hold no code."""
LARGEST_SCALE = 65504.0


@dataclass(frozen=True, slots=True, kw_only=True)
class GridSettings:
    """Which grid a group of weights gets."""

    bits: int
    group_size: int | None = None
    """Columns that share a scale; None: the whole row."""
    symmetric: bool = False
    """The zero in the middle, 2^(bits - 1), and the step 2 absmax / (2^bits - 1), as GPTQ's own code has it."""
    lowest_zero: int = 0
    """GPTQ's first checkpoint format stores zero - 1, so it cannot hold a zero of 0; AWQ's can."""

    @property
    def max_code(self) -> int:
        return 2**self.bits - 1

    def columns_a_group(self, columns: int) -> int:
        """ValueError where the group size does not divide the row."""
        size = self.group_size or columns
        if columns % size:
            raise ValueError(f"groups of {size} do not divide rows of {columns}")
        return size


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """value = (code - zeros) * scales; both of the shape of the weights without their last dimension."""

    scales: Tensor
    """fp16"""
    zeros: Tensor
    """uint8"""

    def codes(self, weights: Tensor, max_code: int) -> Tensor:
        """[..., g] fp32 -> [..., g] fp32 whole numbers, the nearest codes."""
        scaled = weights / self.scales.float().unsqueeze(-1)
        return scaled.round_().add_(self.zeros.float().unsqueeze(-1)).clamp_(0, max_code)

    def values(self, codes: Tensor) -> Tensor:
        """[..., g] codes -> [..., g] fp32 weights."""
        return (codes.float() - self.zeros.float().unsqueeze(-1)) * self.scales.float().unsqueeze(-1)

    def nearest(self, weights: Tensor, max_code: int) -> Tensor:
        """[..., g] fp32 -> [..., g] fp32, each weight's nearest value on the grid."""
        return self.values(self.codes(weights, max_code))


def find_grid(weights: Tensor, settings: GridSettings, keep_range: Tensor | float = 1.0) -> Grid:
    """The grid between the smallest and the largest of [..., g] weights; zero always lies on it.

    keep_range, a number or [...]: that share of the range, the rest is clipped.
    """
    low = weights.amin(dim=-1).clamp(max=0.0) * keep_range
    high = weights.amax(dim=-1).clamp(min=0.0) * keep_range
    if settings.symmetric:
        scales = _stored(2 * torch.maximum(high, -low) / settings.max_code)
        return Grid(scales=scales, zeros=torch.full_like(scales, 2 ** (settings.bits - 1), dtype=torch.uint8))
    scales = _stored((high - low) / settings.max_code)
    zeros = (-low / scales.float()).round_().clamp_(0, settings.max_code)
    if settings.lowest_zero:
        # One code is lost below zero, so those above it are farther apart.
        short = zeros < settings.lowest_zero
        scales = torch.where(short, _stored(high / (settings.max_code - settings.lowest_zero)), scales)
        zeros = zeros.clamp_(min=settings.lowest_zero)
    return Grid(scales=scales, zeros=zeros.to(torch.uint8))


def in_groups(weight: Tensor, settings: GridSettings) -> Tensor:
    """[N, K] -> [N, groups, group size]"""
    return weight.unflatten(1, (-1, settings.columns_a_group(weight.shape[1])))


def round_to_nearest(weight: Tensor, settings: GridSettings, keep_range: Tensor | float = 1.0) -> IntegerWeight:
    """RTN of [N, K] fp32 in groups of neighbouring columns; keep_range as `find_grid` has it, [N, groups]."""
    groups = in_groups(weight, settings)
    grid = find_grid(groups, settings, keep_range)
    return IntegerWeight(
        codes=grid.codes(groups, settings.max_code).to(torch.uint8).flatten(1),
        scales=grid.scales,
        zeros=grid.zeros,
        group_of=neighbouring_groups(weight.shape[1], groups.shape[2], weight.device),
        bits=settings.bits,
    )


def neighbouring_groups(columns: int, group_size: int, device: torch.device) -> Tensor:
    """[K] int32: the group of each column where groups are neighbours."""
    return torch.arange(columns, dtype=torch.int32, device=device) // group_size


def _stored(scales: Tensor) -> Tensor:
    return scales.clamp(SMALLEST_SCALE, LARGEST_SCALE).to(torch.float16)
