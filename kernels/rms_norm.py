"""Root-mean-square norm over the last dimension, with the residual sum before it; does not know which norm it is.

out = h / sqrt(mean(h^2) + eps) * weight, where h = x, or residual + x, which then replaces the residual.
"""

from functools import cache
from typing import Any

import torch
from torch import Tensor


def rms_norm(x: Tensor, weight: Tensor, eps: float, residual: Tensor | None = None) -> Tensor:
    """x [rows, D] fp32, weight [D] fp32; `residual` [rows, D] is changed in place."""
    if not x.is_cpu:
        return rms_norm_reference(x, weight, eps, residual)
    return _cpu().rms_norm(x, weight, eps, residual)


def rms_norm_reference(x: Tensor, weight: Tensor, eps: float, residual: Tensor | None = None) -> Tensor:
    if residual is not None:
        x = residual.add_(x)
    return weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps))


@cache
def _cpu() -> Any:
    from kernels.cpu import rows

    return rows
