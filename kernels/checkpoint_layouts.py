"""How GPTQ and AWQ checkpoints hold integers in int32 words, both directions; it knows no file and no kernel's layout.

GPTQ (AutoGPTQ's qlinear_cuda.pack, which GPTQModel keeps): values along K fill words from bit 0 on as one string of
bits, so that 32 values of 3 bits take three words and two of them straddle; qzeros are packed the same way along N.
AWQ (AutoAWQ's WQLinear_GEMM.from_linear): eight values along N a word, in the order of AWQ_ORDER.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import gcd

import torch
from torch import Tensor

GPTQ_BITS = (2, 3, 4, 8)
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""Columns of eight that AutoAWQ's words hold, from bit 0 (its packer's order_map)."""
WORD_BITS = 32
BYTE_BITS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class IntegerWeight:
    """weight[n, k] = (codes[n, k] - zeros[n, g]) * scales[n, g], g = group_of[k]"""

    codes: Tensor
    """[N, K] uint8, 0 .. 2^bits - 1, columns in the weight's own order"""
    scales: Tensor
    """[N, groups] fp16, bf16 or fp32"""
    zeros: Tensor
    """[N, groups] uint8, of 8 bits int16; GPTQ's first format may hold 2^bits"""
    group_of: Tensor
    """[K] int32: the group of each column (GPTQ's g_idx)"""
    bits: int

    def dequantize(self) -> Tensor:
        """[N, K] fp32"""
        group_of = self.group_of.long()
        offsets = self.codes.float() - self.zeros.float()[:, group_of]
        return offsets * self.scales.float()[:, group_of]


def group_order(group_of: Tensor) -> Tensor | None:
    """[K] int64 that puts the columns of each group side by side; None where they stand so.

    Raises ValueError where groups differ in size.
    """
    if bool((group_of.diff() >= 0).all()):
        return None
    counts = torch.bincount(group_of.long())
    if bool((counts != counts[0]).any()):
        raise ValueError("act-order groups of different sizes")
    return torch.argsort(group_of, stable=True)


def pack_gptq(weight: IntegerWeight, *, v1: bool = True) -> dict[str, Tensor]:
    """qweight [K bits / 32, N] int32, qzeros [groups, N bits / 32] int32, scales [groups, N], g_idx [K] int32.

    The first format stores zero - 1, so it holds no zero of 0. Raises ValueError for that, for other bits than 2, 3, 4
    and 8, and where values do not fill whole words.
    """
    _check_bits(weight.bits)
    zeros = weight.zeros.to(torch.int64) - int(v1)
    if int(zeros.min()) < 0 or int(zeros.max()) >= 2**weight.bits:
        raise ValueError(f"zeros of {weight.bits} bits lie outside of what the format holds")
    return {
        "qweight": _words(weight.codes.T, weight.bits, dim=0),
        "qzeros": _words(zeros.T, weight.bits, dim=1),
        "scales": weight.scales.T.contiguous(),
        "g_idx": weight.group_of.to(torch.int32),
    }


def unpack_gptq(
    qweight: Tensor, qzeros: Tensor, scales: Tensor, g_idx: Tensor | None, *, bits: int, v1: bool = True
) -> IntegerWeight:
    """What pack_gptq was given; without g_idx groups are neighbouring columns. Raises ValueError for odd shapes."""
    _check_bits(bits)
    codes = _values(qweight, bits, dim=0).T
    zeros = _values(qzeros, bits, dim=1).T.to(torch.int16) + int(v1)
    columns, groups = codes.shape[1], scales.shape[0]
    if g_idx is None:
        if columns % groups:
            raise ValueError(f"{groups} groups do not divide {columns} columns")
        g_idx = torch.arange(columns, device=codes.device) // (columns // groups)
    return IntegerWeight(
        codes=codes.contiguous(),
        scales=scales.T.contiguous(),
        zeros=(zeros if bits == BYTE_BITS else zeros.to(torch.uint8)).contiguous(),
        group_of=g_idx.to(torch.int32),
        bits=bits,
    )


def pack_awq(weight: IntegerWeight) -> dict[str, Tensor]:
    """qweight [K, N / 8] int32, qzeros [groups, N / 8] int32, scales [groups, N].

    Raises ValueError for other bits than 4, groups that are no neighbours, and N that is no multiple of 8.
    """
    columns, groups = weight.codes.shape[1], weight.scales.shape[1]
    neighbours = torch.arange(columns, device=weight.codes.device) // max(1, columns // groups)
    if weight.bits != 4 or columns % groups or not torch.equal(weight.group_of.long(), neighbours):
        raise ValueError("AWQ's layout holds 4 bits in groups of neighbouring columns")
    return {
        "qweight": _awq_words(weight.codes.T),
        "qzeros": _awq_words(weight.zeros.T),
        "scales": weight.scales.T.contiguous(),
    }


def unpack_awq(qweight: Tensor, qzeros: Tensor, scales: Tensor) -> IntegerWeight:
    """What pack_awq was given. Raises ValueError where groups do not divide the columns."""
    codes, zeros = (_awq_values(words).T.contiguous() for words in (qweight, qzeros))
    columns, groups = codes.shape[1], scales.shape[0]
    if columns % groups:
        raise ValueError(f"{groups} groups do not divide {columns} columns")
    group_of = torch.arange(columns, dtype=torch.int32, device=codes.device) // (columns // groups)
    return IntegerWeight(codes=codes, scales=scales.T.contiguous(), zeros=zeros, group_of=group_of, bits=4)


def _check_bits(bits: int) -> None:
    if bits not in GPTQ_BITS:
        raise ValueError(f"{bits} bits: a GPTQ checkpoint has {', '.join(map(str, GPTQ_BITS))}")


def _unit(bits: int) -> tuple[int, int]:
    """The fewest values that fill whole words, and how many words those are."""
    values = WORD_BITS // gcd(WORD_BITS, bits)
    return values, values * bits // WORD_BITS


def _words(values: Tensor, bits: int, dim: int) -> Tensor:
    """Integers 0 .. 2^bits - 1 along `dim` -> int32 words along it."""
    count, num_words = _unit(bits)
    if values.shape[dim] % count:
        raise ValueError(f"{values.shape[dim]} values of {bits} bits do not fill whole words; {count} fill {num_words}")
    units = values.to(torch.int64).movedim(dim, -1).unflatten(-1, (-1, count))
    words: list[Tensor | int] = [0] * num_words
    for place in range(count):
        word, shift = divmod(bits * place, WORD_BITS)
        words[word] = words[word] | (units[..., place] << shift) & 0xFFFFFFFF
        if shift + bits > WORD_BITS:
            words[word + 1] = words[word + 1] | units[..., place] >> (WORD_BITS - shift)
    packed = torch.stack(_tensors(words), dim=-1).flatten(-2)
    # The upper half of 0 .. 2^32 - 1 is the negative int32 of the same bits.
    return torch.where(packed >= 2**31, packed - 2**32, packed).to(torch.int32).movedim(-1, dim).contiguous()


def _values(words: Tensor, bits: int, dim: int) -> Tensor:
    """int32 words along `dim` -> uint8 values along it."""
    count, num_words = _unit(bits)
    if words.shape[dim] % num_words:
        raise ValueError(f"{words.shape[dim]} words do not hold whole runs of {bits}-bit values")
    units = (words.movedim(dim, -1).to(torch.int64) & 0xFFFFFFFF).unflatten(-1, (-1, num_words))
    values = []
    for place in range(count):
        word, shift = divmod(bits * place, WORD_BITS)
        value = units[..., word] >> shift
        if shift + bits > WORD_BITS:
            value = value | units[..., word + 1] << (WORD_BITS - shift)
        values.append((value & (2**bits - 1)).to(torch.uint8))
    return torch.stack(values, dim=-1).flatten(-2).movedim(-1, dim)


def _awq_words(values: Tensor) -> Tensor:
    if values.shape[1] % len(AWQ_ORDER):
        raise ValueError(f"{values.shape[1]} rows of the weight are no multiple of {len(AWQ_ORDER)}")
    ordered = values.unflatten(1, (-1, len(AWQ_ORDER)))[..., list(AWQ_ORDER)].flatten(1)
    return _words(ordered, 4, dim=1)


def _awq_values(words: Tensor) -> Tensor:
    places = torch.argsort(torch.tensor(AWQ_ORDER, device=words.device))
    return _values(words, 4, dim=1).unflatten(1, (-1, len(AWQ_ORDER)))[..., places].flatten(1)


def _tensors(words: Sequence[Tensor | int]) -> list[Tensor]:
    return [word for word in words if isinstance(word, Tensor)]
