"""x @ weight.T with 4-bit NormalFloat weights on a GPU; it does not know which layer it is.

The words are int4's but for the order of nibbles; absmax is fp16 here (2^-11, a quarter of what bf16 outputs round),
double quantisation undone: 4.25 bits a weight in blocks of 64.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from kernels.gpu.four_bit_decode import nf4_registers
from kernels.gpu.four_bit_dequantize import dequantize
from kernels.gpu.four_bit_layout import (
    PackedFourBit,
    internal_group_size,
    pack_words,
    pad_groups,
    unpack_words,
)
from kernels.nf4_matmul import Nf4Weight, block_absmax
from kernels.packing import NF4_TABLE

_ZERO = NF4_TABLE.index(0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedNf4Words(PackedFourBit):
    """scales are absmax in fp16"""

    code: ClassVar[Literal["nf4"]] = "nf4"


def pack_nf4_words(weight: Nf4Weight) -> PackedNf4Words:
    """Raises ValueError for blocks other than 32, 64, multiples of 128 and the whole row."""
    n, k = weight.qdata.shape
    group_size = internal_group_size(weight.block, k)
    words = pack_words(weight.qdata, "adjacent", padding=_ZERO)
    return PackedNf4Words(
        words=words,
        scales=pad_groups(block_absmax(weight).to(torch.float16), group_size, k),
        zeros=None,
        group_size=group_size,
        out_features=n,
        in_features=k,
        input_order=None,
        table=nf4_registers(words.device),
        arrivals=words.new_zeros(words.shape[0] // 32),
    )


def unpack_nf4_words(packed: PackedNf4Words) -> Nf4Weight:
    n, k = packed.out_features, packed.in_features
    groups = max(1, k // packed.group_size)
    return Nf4Weight(
        qdata=unpack_words(packed.words, "adjacent")[:n, :k].contiguous(),
        absmax=packed.scales[:n, :groups].float(),
        block=k // groups,
    )


def dequantize_nf4_words(packed: PackedNf4Words, out: Tensor | None = None) -> Tensor:
    """[N, K] bf16."""
    return dequantize(packed, out)


def dequantize_nf4_reference(packed: PackedNf4Words) -> Tensor:
    """[N, K] float64, by plain PyTorch."""
    weight = unpack_nf4_words(packed)
    values = torch.tensor(NF4_TABLE, dtype=torch.float64, device=packed.words.device)[weight.qdata.long()]
    return values * block_absmax(weight).double().repeat_interleave(weight.block, dim=1)
