"""How 4-bit weights lie in 32-bit words on a GPU, both directions, in plain PyTorch; knows no scale and no format.

A row's K is cut in blocks of 128, a block is 16 words, word 4t + u (t, u in 0..3) holds the eight
k = 32u + 8p + 2t + e (p in 0..3, e in 0..1): what lane t of a quad needs as the A operand of eight m16k16 products over
the block in natural order, so that 16 bytes of a lane become its registers and the activations keep their order.

A pair (e = 0, 1) becomes the two halves of one register. "split" nibbles put e = 0 at bits 4p and e = 1 at 16 + 4p, for
one lop3 a pair; "adjacent" ones put it at 8p and 8p + 4, for byte lookups by prmt, whose selectors are four neighbours.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from kernels.packing import pad_to

BLOCK = 128
"""K of a block"""
WORDS = 16
"""Words of a block"""
ROW_MULTIPLE = 128
"""Rows are padded to whole tiles of the products"""

Pairs = Literal["split", "adjacent"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedFourBit:
    """[N, K] weights of four bits; rows padded to 128, K to 128, padding weighs zero."""

    words: Tensor
    """[rows, blocks * 16] int32"""
    scales: Tensor
    """[rows, groups] fp16 or bf16"""
    zeros: Tensor | None
    """[rows, groups] int8, zero - 8; None where it is 8 everywhere"""
    group_size: int
    """32, 64, or a multiple of 128 (a whole row's is the padded K)"""
    out_features: int
    in_features: int
    input_order: Tensor | None
    """[K] int32: column k of the words is column input_order[k] of the weight; None for the weight's own order"""
    table: Tensor | None
    """[16, 32] int32 registers of NormalFloat's values (four_bit_decode.nf4_registers); None for integers"""
    arrivals: Tensor
    """[rows / 32] int32 zeros, which split products of this weight count up and set back"""

    code: ClassVar[Literal["int4", "nf4"]]

    @property
    def nbytes(self) -> int:
        """Bytes that one product reads."""
        parts = (self.words, self.scales, self.zeros, self.input_order)
        return sum(part.nbytes for part in parts if part is not None)

    @property
    def rows(self) -> int:
        return self.words.shape[0]

    @property
    def blocks(self) -> int:
        return self.words.shape[1] // WORDS


def pack_words(codes: Tensor, pairs: Pairs, padding: int) -> Tensor:
    """[N, K] uint8 codes 0..15 -> [rows, blocks * 16] int32; padding is the code past N and K."""
    codes = pad_to(pad_to(codes.to(torch.int32) - padding, 0, ROW_MULTIPLE), 1, BLOCK) + padding
    rows, width = codes.shape
    # [rows, blocks, u, p, t, e] -> [rows, blocks, t, u, p, e]
    nibbles = codes.view(rows, width // BLOCK, 4, 4, 4, 2).permute(0, 1, 4, 2, 3, 5)
    words = torch.zeros(nibbles.shape[:4], dtype=torch.int32, device=codes.device)
    for p in range(4):
        for e in range(2):
            words |= nibbles[..., p, e] << shift_of(pairs, p, e)
    return words.reshape(rows, -1)


def unpack_words(words: Tensor, pairs: Pairs) -> Tensor:
    """[rows, blocks * 16] int32 -> [rows, blocks * 128] uint8 codes."""
    rows = words.shape[0]
    by_lane = words.view(rows, -1, 4, 4)
    pairs_of = [
        torch.stack([(by_lane >> shift_of(pairs, p, e)) & 15 for e in range(2)], dim=-1).to(torch.uint8)
        for p in range(4)
    ]
    return torch.stack(pairs_of, dim=-2).permute(0, 1, 3, 4, 2, 5).reshape(rows, -1)


def shift_of(pairs: Pairs, p: int, e: int) -> int:
    return 4 * p + 16 * e if pairs == "split" else 8 * p + 4 * e


def pad_groups(per_group: Tensor, group_size: int, in_features: int) -> Tensor:
    """[N, groups] -> [rows, groups over the padded K], zeros in the padding."""
    width = -(-in_features // BLOCK) * BLOCK
    groups = -(-width // group_size)
    missing = groups - per_group.shape[1]
    wide = torch.nn.functional.pad(per_group, (0, missing)) if missing else per_group
    return pad_to(wide, 0, ROW_MULTIPLE).contiguous()


def internal_group_size(group_size: int, in_features: int) -> int:
    """32, 64 and multiples of 128 as they are; a group that is the whole row becomes the padded row.

    Raises ValueError for another size.
    """
    if group_size in (-1, in_features) and in_features % BLOCK:
        return -(-in_features // BLOCK) * BLOCK
    size = in_features if group_size == -1 else group_size
    if (size not in (32, 64) and size % BLOCK) or in_features % size:
        raise ValueError(f"groups of {group_size} over rows of {in_features} are not supported")
    return size


def constants_of(packed: PackedFourBit) -> dict[str, Any]:
    """What every kernel is compiled for."""
    return {"NF4": packed.code == "nf4", "ZEROS": packed.zeros is not None, "GROUP": min(packed.group_size, BLOCK)}
