"""Bit layouts of packed weights and caches, both directions, on any device; knows no arithmetic of an operation.

A panel is LANES output rows side by side, so that one SIMD load takes the same k of all of them:
bf16 and int8 [panels, K/2, LANES, 2] (a lane holds a pair of k), fp32 [panels, K, LANES],
4-bit codes [panels, K/8, LANES] int32 (nibble i of a lane is k + i), block scales [panels, K/block, LANES].
"""

import torch
import torch.nn.functional as F
from torch import Tensor

LANES = 16


def pad_to(tensor: Tensor, dim: int, multiple: int) -> Tensor:
    """Zeros at the end of `dim` up to a multiple."""
    missing = -tensor.shape[dim] % multiple
    if not missing:
        return tensor
    widths = [0] * (2 * (tensor.dim() - dim - 1)) + [0, missing]
    return F.pad(tensor, widths)


def panels_of(rows: Tensor, group: int) -> Tensor:
    """[N, K] -> [panels, K/group, LANES, group]."""
    rows = pad_to(pad_to(rows, 0, LANES), 1, group)
    n, k = rows.shape
    return rows.view(n // LANES, LANES, k // group, group).transpose(1, 2).contiguous()


def rows_of(panels: Tensor, num_rows: int, num_columns: int) -> Tensor:
    """[panels, K/group, LANES, group] -> [N, K]."""
    count, groups, lanes, group = panels.shape
    rows = panels.transpose(1, 2).reshape(count * lanes, groups * group)
    return rows[:num_rows, :num_columns]


def pack_nibbles(codes: Tensor) -> Tensor:
    """Codes 0 .. 15 as uint8 [..., 8] -> one int32 [...], the first in the lowest bits."""
    shifts = torch.arange(0, 32, 4, device=codes.device, dtype=torch.int64)
    words = (codes.to(torch.int64) << shifts).sum(-1)
    return torch.where(words >= 2**31, words - 2**32, words).to(torch.int32)


def unpack_nibbles(words: Tensor) -> Tensor:
    """int32 [...] -> uint8 [..., 8]."""
    shifts = torch.arange(0, 32, 4, device=words.device, dtype=torch.int32)
    return ((words.unsqueeze(-1) >> shifts) & 15).to(torch.uint8)
