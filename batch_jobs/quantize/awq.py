"""AWQ (Lin et al. 2023, arXiv:2306.00978): scales of input channels and clipping; it knows no layer and no checkpoint.

A channel that large activations meet is multiplied by s > 1 before rounding and its input divided by s, so that its
rounding error weighs less. Everything is measured as the error of the outputs, which needs no forward pass:
||(Q(W diag(s)) diag(s)^-1 - W) X||^2 = tr(D H D^T) (equation 4, with the mean of x x^T for X X^T).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from batch_jobs.quantize.grid import GridSettings, find_grid, in_groups, round_to_nearest
from batch_jobs.quantize.input_statistics import output_error

ALPHAS = tuple(step / 20 for step in range(20))
"""The paper's grid over the exponent: 20 points in [0, 1); 0 is plain rounding to nearest."""
KEPT_RANGES = tuple(1 - step / 20 for step in range(10))
"""Shares of a group's range that clipping tries: down to 0.55, as the authors' code does."""
SMALLEST_MAGNITUDE = 1e-4


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelScales:
    """The best of the grid over alpha."""

    scales: Tensor
    """[K] fp32, the geometric middle of the largest and the smallest 1"""
    alpha: float
    error: float
    """Of the outputs of all the matrices, mean over tokens."""
    rtn_error: float
    """The same without scales."""


def channel_scales(magnitude: Tensor, alpha: float) -> Tensor:
    """s = mean|x|^alpha (equation 5), normalised: [K] fp32."""
    scales = magnitude.clamp(min=SMALLEST_MAGNITUDE).pow(alpha)
    return scales / (scales.max() * scales.min()).sqrt()


def search_scales(
    weights: Sequence[Tensor], hessian: Tensor, magnitude: Tensor, settings: GridSettings
) -> ChannelScales:
    """One s for matrices [N, K] fp32 that read the same inputs, the one with the least error of their outputs.

    hessian [K, K] and magnitude [K], the mean of |x|, as InputStatistics has them.
    """
    found: list[ChannelScales] = []
    for alpha in ALPHAS:
        scales = channel_scales(magnitude, alpha)
        error = sum(output_error(rounded_when_scaled(weight, scales, settings) - weight, hessian) for weight in weights)
        rtn_error = found[0].rtn_error if found else error
        found.append(ChannelScales(scales=scales, alpha=alpha, error=error, rtn_error=rtn_error))
    return min(found, key=lambda candidate: candidate.error)


def rounded_when_scaled(weight: Tensor, scales: Tensor, settings: GridSettings) -> Tensor:
    """Q(W diag(s)) diag(s)^-1: [N, K] fp32."""
    groups = in_groups(weight * scales, settings)
    rounded = find_grid(groups, settings).nearest(groups, settings.max_code)
    return rounded.flatten(1) / scales


def search_clipping(weight: Tensor, hessian: Tensor, settings: GridSettings) -> Tensor:
    """The share of its range that each group keeps: [N, groups] fp32, each with the least error of its own outputs.

    The authors' code takes a sample of tokens for it; here H's diagonal blocks stand for all of them.
    """
    groups = in_groups(weight, settings)
    size = groups.shape[2]
    blocks = torch.stack([hessian[at : at + size, at : at + size] for at in range(0, weight.shape[1], size)])
    best = torch.ones(groups.shape[:2], device=weight.device)
    least = torch.full_like(best, torch.inf)
    for kept in KEPT_RANGES:
        difference = find_grid(groups, settings, kept).nearest(groups, settings.max_code) - groups
        by_group = difference.transpose(0, 1)  # [groups, N, size]
        error = (torch.bmm(by_group, blocks) * by_group).sum(dim=-1).T
        best = torch.where(error < least, kept, best)
        least = torch.minimum(error, least)
    return best


def salient_channels(magnitude: Tensor, share: float) -> Tensor:
    """[K] bool: the share of channels with the largest magnitude, at least one."""
    count = max(1, round(share * magnitude.numel()))
    chosen = torch.zeros_like(magnitude, dtype=torch.bool)
    chosen[torch.topk(magnitude, count).indices] = True
    return chosen


def keep_channels(weight: Tensor, kept: Tensor, settings: GridSettings) -> Tensor:
    """RTN with the kept channels as they were, the paper's motivation (table 1): [N, K] fp32."""
    return torch.where(kept, weight, round_to_nearest(weight, settings).dequantize())


def scale_channels(weight: Tensor, salient: Tensor, factor: float, settings: GridSettings) -> Tensor:
    """RTN with the salient channels multiplied by one factor before and divided after (table 2): [N, K] fp32."""
    return rounded_when_scaled(weight, torch.where(salient, factor, 1.0), settings)
