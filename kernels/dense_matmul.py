"""x @ weight.T (+ bias) with bf16 or fp32 weights and fp32 activations; does not know which layer it is.

out[m, n] = bias[n] + sum over k of x[m, k] * weight[n, k], accumulated in fp32 in the order of k.
"""

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from kernels import packing


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedDense:
    panels: Tensor
    """[panels, K/2, LANES, 2] bf16 or [panels, K, LANES, 1] fp32"""
    out_features: int
    in_features: int

    @property
    def nbytes(self) -> int:
        return self.panels.nbytes


def pack_dense(weight: Tensor) -> PackedDense:
    if weight.dtype not in (torch.bfloat16, torch.float32):
        raise ValueError(f"pack_dense takes bfloat16 or float32 weights, not {weight.dtype}")
    group = 2 if weight.dtype is torch.bfloat16 else 1
    out_features, in_features = weight.shape
    panels = packing.panels_of(weight, group)
    return PackedDense(panels=panels, out_features=out_features, in_features=in_features)


def unpack_dense(packed: PackedDense) -> Tensor:
    return packing.rows_of(packed.panels, packed.out_features, packed.in_features)


def dense_matmul(x: Tensor, weight: PackedDense, bias: Tensor | None = None) -> Tensor:
    """[M, K] fp32 -> [M, N] fp32; a row's result does not depend on the other rows."""
    if not x.is_cpu:
        return dense_matmul_reference(x, weight, bias)
    cpu, panels = _cpu(), weight.panels
    return cpu.matmul(cpu.dense_panels, x, weight.out_features, bias, panels.data_ptr(), panels.shape[3])


def dense_matmul_reference(x: Tensor, weight: PackedDense, bias: Tensor | None = None) -> Tensor:
    out = x.float() @ unpack_dense(weight).float().T
    return out if bias is None else out + bias.float()


def gather_rows(ids: Tensor, weight: PackedDense) -> Tensor:
    """Rows of the weight as [T, K] fp32: an embedding that shares its memory with a tied head."""
    panels = weight.panels[ids // packing.LANES]
    lanes = (ids % packing.LANES).view(-1, 1, 1, 1).expand(-1, panels.shape[1], 1, panels.shape[3])
    return panels.gather(2, lanes).reshape(len(ids), -1)[:, : weight.in_features].float()


@cache
def _cpu() -> Any:
    from kernels.cpu import dense

    return dense
