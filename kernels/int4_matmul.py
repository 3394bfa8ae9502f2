"""x @ weight.T with 4-bit integers, as GPTQ and AWQ leave them; does not know which method chose them, nor the layer.

weight = (code - zero) * scale of its group along K, in fp32 as checkpoint_layouts.IntegerWeight.dequantize has it.
Where act-order (Frantar et al. 2023, GPTQ) scattered the columns of a group, the codes lie in the order of their groups
and the inputs are gathered into that order.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from kernels import packing
from kernels.checkpoint_layouts import IntegerWeight, group_order

BITS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedInt4Panels:
    codes: Tensor
    """[panels, K/4, 32] uint8, columns in the order of their groups"""
    scales: Tensor
    """[panels, groups, LANES] fp32"""
    zeros: Tensor
    """[panels, groups, LANES] fp32"""
    input_order: Tensor | None
    """[K] int64: column k of the codes is column input_order[k] of the weight; None: the weight's own order"""
    block: int
    """columns a group"""
    out_features: int
    in_features: int

    @property
    def nbytes(self) -> int:
        order_bytes = 0 if self.input_order is None else self.input_order.nbytes
        return self.codes.nbytes + self.scales.nbytes + self.zeros.nbytes + order_bytes


def pack_int4(weight: IntegerWeight) -> PackedInt4Panels:
    """Raises ValueError for more than 4 bits, K that is no multiple of 8, and groups unequal or no multiple of 4."""
    out_features, in_features = weight.codes.shape
    block = _block(weight)
    order = group_order(weight.group_of)
    return PackedInt4Panels(
        codes=packing.pack_nibbles(weight.codes if order is None else weight.codes[:, order]),
        scales=packing.panels_of(weight.scales.float(), 1).squeeze(-1),
        zeros=packing.panels_of(weight.zeros.float(), 1).squeeze(-1),
        input_order=order,
        block=block,
        out_features=out_features,
        in_features=in_features,
    )


def _block(weight: IntegerWeight) -> int:
    """Columns a group, checked."""
    columns, groups = weight.codes.shape[1], weight.scales.shape[1]
    if weight.bits > BITS:
        raise ValueError(f"{weight.bits} bits do not fit into the {BITS} of a code")
    if columns % 8:
        raise ValueError(f"{columns} columns are no multiple of 8")
    sizes = torch.bincount(weight.group_of.long(), minlength=groups)
    block = columns // groups
    if len(sizes) != groups or bool((sizes != block).any()):
        raise ValueError(f"{columns} columns do not lie in {groups} groups of one size")
    if block % 4:
        raise ValueError(f"groups of {block} columns are no multiple of 4")
    return block


def unpack_int4(packed: PackedInt4Panels) -> IntegerWeight:
    """What pack_int4 was given, with fp32 scales and 4 bits."""
    out_features, in_features = packed.out_features, packed.in_features
    groups = in_features // packed.block
    codes = packing.unpack_nibbles(packed.codes, out_features, in_features)
    group_of = torch.arange(in_features, dtype=torch.int32, device=codes.device) // packed.block
    if packed.input_order is not None:
        places = torch.argsort(packed.input_order)
        codes, group_of = codes[:, places], group_of[places]
    scales, zeros = (packing.rows_of(p.unsqueeze(-1), out_features, groups) for p in (packed.scales, packed.zeros))
    return IntegerWeight(codes=codes, scales=scales, zeros=zeros.to(torch.uint8), group_of=group_of, bits=BITS)


def concatenated(parts: Sequence[IntegerWeight]) -> IntegerWeight:
    """Rows one below the other: q, k and v, or gate and up. Raises ValueError where columns are grouped differently."""
    first = parts[0]
    if any(not torch.equal(part.group_of, first.group_of) for part in parts):
        raise ValueError("weights whose columns are grouped differently are no one weight")
    return IntegerWeight(
        codes=torch.cat([part.codes for part in parts]),
        scales=torch.cat([part.scales for part in parts]),
        zeros=torch.cat([part.zeros for part in parts]),
        group_of=first.group_of,
        bits=max(part.bits for part in parts),
    )


def int4_matmul(x: Tensor, packed: PackedInt4Panels, bias: Tensor | None = None) -> Tensor:
    """[M, K] fp32 -> [M, N] fp32; a row's result does not depend on the other rows."""
    if not x.is_cpu:
        return int4_matmul_reference(x, packed, bias)
    p = packed
    return _cpu().matmul(x, p.codes, p.scales, p.zeros, p.input_order, p.block, p.out_features, bias)


def int4_matmul_reference(x: Tensor, packed: PackedInt4Panels, bias: Tensor | None = None) -> Tensor:
    out = x.float() @ unpack_int4(packed).dequantize().T
    return out if bias is None else out + bias.float()


@cache
def _cpu() -> Any:
    from kernels.cpu import int4

    return int4
