"""GPTQ's and AWQ's words: round trips bit for bit, and against a reading of the words by plain Python arithmetic."""

from __future__ import annotations

import pytest
import torch

from kernels.checkpoint_layouts import IntegerWeight, pack_awq, pack_gptq, unpack_awq, unpack_gptq


def integers(
    bits: int, group_size: int, *, act_order: bool = False, rows: int = 96, columns: int = 256
) -> IntegerWeight:
    draw = torch.Generator().manual_seed(bits * 1000 + group_size)
    group_of = torch.arange(columns) // group_size
    if act_order:
        group_of = group_of[torch.randperm(columns, generator=draw)]
    groups = columns // group_size
    return IntegerWeight(
        codes=torch.randint(2**bits, (rows, columns), dtype=torch.uint8, generator=draw),
        scales=torch.rand(rows, groups, generator=draw).half(),
        zeros=torch.randint(1, 2**bits + 1, (rows, groups), generator=draw).to(
            torch.int16 if bits == 8 else torch.uint8
        ),
        group_of=group_of.int(),
        bits=bits,
    )


def bit_string(words: list[int]) -> int:
    """Words as one number: bit 0 of the first word is the lowest."""
    return sum((word & 0xFFFFFFFF) << (32 * index) for index, word in enumerate(words))


def values_of(words: list[int], bits: int) -> list[int]:
    """The format's description in one line: values one after the other in a string of bits."""
    string = bit_string(words)
    return [(string >> (bits * index)) & (2**bits - 1) for index in range(32 * len(words) // bits)]


def assert_same(again: IntegerWeight, weight: IntegerWeight) -> None:
    assert torch.equal(again.codes, weight.codes)
    assert torch.equal(again.zeros, weight.zeros)
    assert torch.equal(again.scales, weight.scales)
    assert torch.equal(again.group_of, weight.group_of)
    assert again.bits == weight.bits


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("group_size", [32, 64, 128, 256])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_gptq_comes_back_bit_for_bit(bits: int, group_size: int, act_order: bool) -> None:
    weight = integers(bits, group_size, act_order=act_order)
    packed = pack_gptq(weight)
    assert packed["qweight"].shape == (256 * bits // 32, 96)
    assert packed["qzeros"].shape == (256 // group_size, 96 * bits // 32)
    assert packed["scales"].shape == (256 // group_size, 96)
    again = unpack_gptq(packed["qweight"], packed["qzeros"], packed["scales"], packed["g_idx"], bits=bits)
    assert_same(again, weight)


@pytest.mark.parametrize("v1", [True, False])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_gptq_is_what_the_format_says(bits: int, v1: bool) -> None:
    weight = integers(bits, 64)
    weight = weight if v1 else IntegerWeight(**{**fields(weight), "zeros": weight.zeros - 1})
    packed = pack_gptq(weight, v1=v1)
    for row in (0, 5, 95):
        assert values_of(packed["qweight"][:, row].tolist(), bits) == weight.codes[row].tolist()
    for group in (0, 3):
        assert values_of(packed["qzeros"][group].tolist(), bits) == [
            int(zero) - int(v1) for zero in weight.zeros[:, group]
        ]


def test_three_bits_straddle_words() -> None:
    """AutoGPTQ puts value 10 at bits 30 and 31 of the first word and bit 0 of the second, value 21 across the third."""
    codes = torch.zeros(32, 32, dtype=torch.uint8)
    codes[:, 10], codes[:, 21] = 0b101, 0b110
    weight = IntegerWeight(
        codes=codes,
        scales=torch.ones(32, 1),
        zeros=torch.full((32, 1), 4, dtype=torch.uint8),
        group_of=torch.zeros(32, dtype=torch.int32),
        bits=3,
    )
    words = [word & 0xFFFFFFFF for word in pack_gptq(weight)["qweight"][:, 0].tolist()]
    assert words == [0b01 << 30, 0b1, 0b11]


def test_a_hand_worked_word_of_four_bits() -> None:
    weight = IntegerWeight(
        codes=torch.arange(8, dtype=torch.uint8).expand(8, 8).contiguous(),
        scales=torch.full((8, 1), 0.5),
        zeros=torch.full((8, 1), 8, dtype=torch.uint8),
        group_of=torch.zeros(8, dtype=torch.int32),
        bits=4,
    )
    packed = pack_gptq(weight)
    assert packed["qweight"].tolist() == [[0x76543210] * 8]
    assert packed["qzeros"].tolist() == [[0x77777777]]
    assert weight.dequantize()[0].tolist() == [-4.0, -3.5, -3.0, -2.5, -2.0, -1.5, -1.0, -0.5]


def test_without_an_index_groups_are_neighbours() -> None:
    weight = integers(4, 64)
    packed = pack_gptq(weight)
    assert_same(unpack_gptq(packed["qweight"], packed["qzeros"], packed["scales"], None, bits=4), weight)


@pytest.mark.parametrize("group_size", [32, 64, 128, 256])
def test_awq_comes_back_bit_for_bit(group_size: int) -> None:
    weight = integers(4, group_size)
    weight = IntegerWeight(**{**fields(weight), "zeros": weight.zeros - 1})
    packed = pack_awq(weight)
    assert packed["qweight"].shape == (256, 12)
    assert_same(unpack_awq(packed["qweight"], packed["qzeros"], packed["scales"]), weight)


def test_awq_words_are_in_its_own_order() -> None:
    """Nibbles from bit 0: columns 0, 2, 4, 6, 1, 3, 5, 7 of eight outputs."""
    weight = IntegerWeight(
        codes=torch.arange(8, dtype=torch.uint8)[:, None].expand(8, 8).contiguous(),
        scales=torch.ones(8, 1),
        zeros=torch.full((8, 1), 8, dtype=torch.uint8),
        group_of=torch.zeros(8, dtype=torch.int32),
        bits=4,
    )
    assert pack_awq(weight)["qweight"].tolist() == [[0x75316420]] * 8


def test_what_a_format_cannot_hold_is_refused() -> None:
    weight = integers(4, 64)
    with pytest.raises(ValueError, match="zeros of 4 bits lie outside"):
        pack_gptq(IntegerWeight(**{**fields(weight), "zeros": weight.zeros * 0}))
    with pytest.raises(ValueError, match="5 bits"):
        pack_gptq(IntegerWeight(**{**fields(weight), "bits": 5}))
    with pytest.raises(ValueError, match="do not fill whole words"):
        pack_gptq(integers(3, 64, rows=40))
    with pytest.raises(ValueError, match="neighbouring columns"):
        pack_awq(integers(4, 64, act_order=True))
    with pytest.raises(ValueError, match="neighbouring columns"):
        pack_awq(integers(3, 64))
    packed = pack_gptq(weight)
    with pytest.raises(ValueError, match="3 groups do not divide 256 columns"):
        unpack_gptq(packed["qweight"], packed["qzeros"][:3], packed["scales"][:3], None, bits=4)


def fields(weight: IntegerWeight) -> dict[str, object]:
    return {name: getattr(weight, name) for name in ("codes", "scales", "zeros", "group_of", "bits")}
