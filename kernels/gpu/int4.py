"""x @ weight.T with 4-bit integer weights in groups (GPTQ, AWQ) on a GPU: packing, repacking, which kernel when.

weight[n, k] = (code[n, k] - zero[n, g]) * scale[n, g], g = k // group_size. It does not know which layer it is.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from kernels.gpu.four_bit_dequantize import dequantize
from kernels.gpu.four_bit_layout import (
    PackedFourBit,
    internal_group_size,
    pack_words,
    pad_groups,
    unpack_words,
)

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""Columns of eight that AutoAWQ's words hold, from bit 0 (its packer's order_map)"""


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedInt4(PackedFourBit):
    code: ClassVar[Literal["int4"]] = "int4"


@dataclass(frozen=True, slots=True, kw_only=True)
class Int4Codes:
    """A weight taken from a checkpoint, before its layout is ours."""

    codes: Tensor
    """[N, K] uint8 0..15, columns in the order of their groups"""
    scales: Tensor
    """[N, groups] fp16 or bf16"""
    zeros: Tensor
    """[N, groups] uint8; GPTQ's v1 may hold 16"""
    input_order: Tensor | None = None
    """[K] int32, see PackedFourBit"""


def gptq_codes(
    qweight: Tensor, qzeros: Tensor, scales: Tensor, g_idx: Tensor | None = None, *, v1: bool = True
) -> Int4Codes:
    """From AutoGPTQ's tensors: qweight [K / 8, N] int32, qzeros [groups, N / 8] int32, scales [groups, N].

    v1 checkpoints store zero - 1. g_idx [K] names each column's group; where it does not rise from 0 (act-order),
    columns are put in the order of their groups. Raises ValueError where groups then differ in size.
    """
    codes = _nibbles(qweight, dim=0).T.to(torch.uint8)
    zeros = (_nibbles(qzeros, dim=1).T + int(v1)).to(torch.uint8)
    order = None
    if g_idx is not None and bool((g_idx.diff() < 0).any()):
        counts = torch.bincount(g_idx.long(), minlength=scales.shape[0])
        if bool((counts != counts[0]).any()):
            raise ValueError("act-order groups of different sizes")
        order = torch.argsort(g_idx, stable=True)
        codes = codes[:, order]
        order = order.to(torch.int32)
    return Int4Codes(codes=codes.contiguous(), scales=scales.T.contiguous(), zeros=zeros, input_order=order)


def awq_codes(qweight: Tensor, qzeros: Tensor, scales: Tensor) -> Int4Codes:
    """From AutoAWQ's tensors: qweight [K, N / 8] int32, qzeros [groups, N / 8] int32, scales [groups, N]."""
    codes, zeros = (_awq_columns(words).T.to(torch.uint8).contiguous() for words in (qweight, qzeros))
    return Int4Codes(codes=codes, scales=scales.T.contiguous(), zeros=zeros)


def pack_int4(codes: Tensor, scales: Tensor, zeros: Tensor, *, input_order: Tensor | None = None) -> PackedInt4:
    """codes [N, K] uint8 0..15, scales [N, groups] fp16 or bf16, zeros [N, groups] integers.

    Raises ValueError for group sizes other than 32, 64, multiples of 128 and the whole row.
    """
    n, k = codes.shape
    if k % scales.shape[1] or k % 8:
        raise ValueError(f"{scales.shape[1]} groups do not divide rows of {k}, or these are no multiple of 8")
    group_size = internal_group_size(k // scales.shape[1], k)
    offsets = zeros.to(torch.int8) - 8
    words = pack_words(codes, "split", padding=8)
    return PackedInt4(
        words=words,
        scales=pad_groups(scales, group_size, k),
        zeros=pad_groups(offsets, group_size, k) if bool(offsets.any()) else None,
        group_size=group_size,
        out_features=n,
        in_features=k,
        input_order=input_order,
        table=None,
        arrivals=words.new_zeros(words.shape[0] // 32),
    )


def pack_checkpoint(weight: Int4Codes) -> PackedInt4:
    return pack_int4(weight.codes, weight.scales, weight.zeros, input_order=weight.input_order)


def unpack_int4(packed: PackedInt4) -> Int4Codes:
    """What pack_int4 was given."""
    n, k = packed.out_features, packed.in_features
    codes = unpack_words(packed.words, "split")[:n, :k].contiguous()
    groups = max(1, k // packed.group_size)
    scales = packed.scales[:n, :groups].contiguous()
    zeros = torch.zeros_like(scales, dtype=torch.int8) if packed.zeros is None else packed.zeros[:n, :groups]
    return Int4Codes(codes=codes, scales=scales, zeros=(zeros + 8).to(torch.uint8), input_order=packed.input_order)


def dequantize_int4(packed: PackedInt4, out: Tensor | None = None) -> Tensor:
    """[N, K] bf16, columns in the weight's own order."""
    if packed.input_order is None:
        return dequantize(packed, out)
    values = dequantize(packed)[:, torch.argsort(packed.input_order)]
    return values if out is None else out.copy_(values)


def dequantize_int4_reference(packed: PackedInt4) -> Tensor:
    """[N, K] float64, by plain PyTorch."""
    weight = unpack_int4(packed)
    group = packed.in_features // weight.scales.shape[1]
    scales, zeros = (part.double().repeat_interleave(group, dim=1) for part in (weight.scales, weight.zeros))
    values = (weight.codes.double() - zeros) * scales
    if packed.input_order is None:
        return values
    return values[:, torch.argsort(packed.input_order)]


def _nibbles(words: Tensor, dim: int) -> Tensor:
    """Eight nibbles a word, from bit 0, in place of the word along `dim`."""
    shifts = 4 * torch.arange(8, device=words.device, dtype=torch.int32)
    spread = (words.unsqueeze(dim + 1) >> (shifts.view(8, 1) if dim == 0 else shifts)) & 15
    return spread.flatten(dim, dim + 1)


def _awq_columns(words: Tensor) -> Tensor:
    """Nibble i of a word is column AWQ_ORDER[i] of its eight."""
    order = torch.argsort(torch.tensor(AWQ_ORDER, device=words.device))
    return _nibbles(words, dim=1).unflatten(1, (-1, 8))[..., order].flatten(1)
