"""What calibration inputs of one matrix sum up to, and the output error that follows; it knows no quantisation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class InputStatistics:
    """Of the inputs x of matrices that read the same ones, w being what a token counts: 1, or as `block_pass` says."""

    hessian: Tensor
    """[K, K] fp32: the mean of w x x^T over tokens; the paper's H = 2 X X^T but for a factor that cancels out, and w"""
    magnitude: Tensor
    """[K] fp32: the mean of sqrt(w) |x| over tokens"""
    num_tokens: int


class InputSums:
    """InputStatistics in the making: sums over batches."""

    def __init__(self, columns: int, device: torch.device) -> None:
        self._products = torch.zeros(columns, columns, device=device)
        self._magnitudes = torch.zeros(columns, device=device)
        self._num_tokens = 0

    def add(self, inputs: Tensor, weights: Tensor | None = None) -> None:
        """[..., K] of any float dtype; weights [..., 1]: what a token's squared error counts; sums are fp32."""
        rows = inputs.flatten(0, -2).float()
        if weights is not None:
            rows = rows * weights.flatten(0, -2).float().sqrt()
        self._products.addmm_(rows.T, rows)
        self._magnitudes += rows.abs().sum(dim=0)
        self._num_tokens += rows.shape[0]

    def mean(self) -> InputStatistics:
        return InputStatistics(
            hessian=self._products.div_(self._num_tokens),
            magnitude=self._magnitudes / self._num_tokens,
            num_tokens=self._num_tokens,
        )


def pooled(shares: Sequence[InputStatistics]) -> InputStatistics:
    """Of all the tokens together, summed in this order."""
    if len(shares) == 1:
        return shares[0]
    num_tokens = sum(share.num_tokens for share in shares)
    first = shares[0]
    hessian = first.hessian * (first.num_tokens / num_tokens)
    magnitude = first.magnitude * (first.num_tokens / num_tokens)
    for share in shares[1:]:
        hessian.add_(share.hessian.to(hessian.device), alpha=share.num_tokens / num_tokens)
        magnitude.add_(share.magnitude.to(hessian.device), alpha=share.num_tokens / num_tokens)
    return InputStatistics(hessian=hessian, magnitude=magnitude, num_tokens=num_tokens)


def output_error(difference: Tensor, hessian: Tensor) -> float:
    """tr(D H D^T): the mean over tokens of w ||(Q - W) x||^2, for D = Q - W of [N, K] fp32."""
    return float(((difference @ hessian) * difference).sum(dtype=torch.float64))
