"""x @ weight.T with 4-bit integer weights in groups (GPTQ, AWQ) on a GPU: packing, repacking, which kernel when.

weight[n, k] = (code[n, k] - zero[n, g]) * scale[n, g], g = k // group_size. It does not know which layer it is.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from kernels.checkpoint_layouts import IntegerWeight, group_order
from kernels.gpu.four_bit_dequantize import dequantize
from kernels.gpu.four_bit_layout import (
    PackedFourBit,
    internal_group_size,
    pack_words,
    pad_groups,
    unpack_words,
)

SCALE_DTYPES = (torch.float16, torch.bfloat16)


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedInt4(PackedFourBit):
    code: ClassVar[Literal["int4"]] = "int4"


def pack_int4(weight: IntegerWeight) -> PackedInt4:
    """[N, K] of at most 4 bits; scales become bf16 where they are no 16-bit floats.

    Raises ValueError for group sizes other than 32, 64, multiples of 128 and the whole row, and K no multiple of 8.
    """
    n, k = weight.codes.shape
    groups = weight.scales.shape[1]
    if k % groups or k % 8:
        raise ValueError(f"{groups} groups do not divide rows of {k}, or these are no multiple of 8")
    group_size = internal_group_size(k // groups, k)
    order = group_order(weight.group_of)
    codes = weight.codes if order is None else weight.codes[:, order]
    offsets = weight.zeros.to(torch.int8) - 8
    scales = weight.scales if weight.scales.dtype in SCALE_DTYPES else weight.scales.to(torch.bfloat16)
    words = pack_words(codes, "split", padding=8)
    return PackedInt4(
        words=words,
        scales=pad_groups(scales, group_size, k),
        zeros=pad_groups(offsets, group_size, k) if bool(offsets.any()) else None,
        group_size=group_size,
        out_features=n,
        in_features=k,
        input_order=None if order is None else order.to(torch.int32),
        table=None,
        arrivals=words.new_zeros(words.shape[0] // 32),
    )


def unpack_int4(packed: PackedInt4) -> IntegerWeight:
    """What pack_int4 was given, in 4 bits."""
    n, k = packed.out_features, packed.in_features
    codes = unpack_words(packed.words, "split")[:n, :k]
    groups = max(1, k // packed.group_size)
    scales = packed.scales[:n, :groups].contiguous()
    zeros = torch.zeros_like(scales, dtype=torch.int8) if packed.zeros is None else packed.zeros[:n, :groups]
    group_of = torch.arange(k, dtype=torch.int32, device=codes.device) // (k // groups)
    if packed.input_order is not None:
        place = torch.argsort(packed.input_order)
        codes, group_of = codes[:, place], group_of[place]
    return IntegerWeight(
        codes=codes.contiguous(), scales=scales, zeros=(zeros + 8).to(torch.uint8), group_of=group_of, bits=4
    )


def dequantize_int4(packed: PackedInt4, out: Tensor | None = None) -> Tensor:
    """[N, K] bf16, columns in the weight's own order."""
    if packed.input_order is None:
        return dequantize(packed, out)
    values = dequantize(packed)[:, torch.argsort(packed.input_order)]
    return values if out is None else out.copy_(values)


def dequantize_int4_reference(packed: PackedInt4) -> Tensor:
    """[N, K] float64, by plain PyTorch."""
    weight = unpack_int4(packed)
    scales, zeros = (part.double()[:, weight.group_of.long()] for part in (weight.scales, weight.zeros))
    return (weight.codes.double() - zeros) * scales
