"""Bit layouts of packed weights and caches, both directions, on any device; knows no arithmetic of an operation.

A panel is LANES output rows side by side, so that one SIMD load takes the same k of all of them:
bf16 and int8 [panels, K/2, LANES, 2] (a lane holds a pair of k), fp32 [panels, K, LANES, 1],
4-bit codes [panels, K/4, 2 * LANES] bytes (two k in the low nibbles, two in the high ones),
block scales [panels, K/block, LANES].
"""

import torch
from torch import Tensor
from torch.nn import functional

# fmt: off
NF4_TABLE = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
    -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
    0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)
# fmt: on
"""The sixteen values of 4-bit NormalFloat (Dettmers et al. 2023, QLoRA, appendix E)."""

LANES = 16


def pad_to(tensor: Tensor, dim: int, multiple: int) -> Tensor:
    """Zeros at the end of `dim` up to a multiple."""
    missing = -tensor.shape[dim] % multiple
    if not missing:
        return tensor
    widths = [0] * (2 * (tensor.dim() - dim - 1)) + [0, missing]
    return functional.pad(tensor, widths)


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


# where the two k of a byte's low (or high) nibbles go: byte 0..3 of a 16-byte half, then 4..7, ...
# are what the AVX2 unpack instructions make four consecutive lanes of
_NIBBLE_ORDER = [
    16 * k + 8 * upper + 4 * half + lane for half in (0, 1) for k in (0, 1) for upper in (0, 1) for lane in range(4)
]


def pack_nibbles(codes: Tensor) -> Tensor:
    """uint8 codes 0 .. 15 [N, K] -> [panels, K/4, 32] bytes: k and k + 1 in low nibbles, then two in high ones."""
    groups = panels_of(codes, 4).transpose(2, 3).flatten(2)
    low, high = (half[..., _NIBBLE_ORDER] for half in groups.split(2 * LANES, dim=-1))
    return low | (high << 4)


def unpack_nibbles(packed: Tensor, num_rows: int, num_columns: int) -> Tensor:
    """[panels, K/4, 32] bytes -> uint8 codes [N, K]."""
    order = torch.argsort(torch.tensor(_NIBBLE_ORDER, device=packed.device))
    groups = torch.cat([(packed & 15)[..., order], (packed >> 4)[..., order]], dim=-1)
    return rows_of(groups.unflatten(-1, (4, LANES)).transpose(2, 3), num_rows, num_columns)
