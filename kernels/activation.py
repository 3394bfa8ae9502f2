"""The gated activation of the feed-forward layer; does not know the layer.

out = silu(gate) * up, silu(g) = g / (1 + e^-g), with gate and up side by side in one tensor.
"""

from functools import cache
from typing import Any

from torch import Tensor
from torch.nn import functional


def silu_mul(gate_up: Tensor) -> Tensor:
    """[M, 2F] fp32 -> [M, F] fp32"""
    if not gate_up.is_cpu:
        return silu_mul_reference(gate_up)
    return _cpu().silu_mul(gate_up)


def silu_mul_reference(gate_up: Tensor) -> Tensor:
    gate, up = gate_up.chunk(2, dim=-1)
    return functional.silu(gate) * up


@cache
def _cpu() -> Any:
    from kernels.cpu import rows

    return rows
