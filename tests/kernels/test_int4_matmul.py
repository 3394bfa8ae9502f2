"""int4: the product against float64, its two ways of decoding against each other, and packing undone."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from kernels.checkpoint_layouts import IntegerWeight
from kernels.int4_matmul import concatenated, int4_matmul, int4_matmul_reference, pack_int4, unpack_int4

ROWS = (1, 2, 3, 6, 7, 17, 33)
SHAPES = [(16, 64, 32), (40, 64, 64), (192, 576, 64), (40, 576, 32), (40, 576, 576), (40, 1536, 128), (192, 1536, 64)]


def integer_weight(out_features: int, in_features: int, group_size: int, bits: int = 4) -> IntegerWeight:
    """Every code, and zeros from 0 to the 2^bits of GPTQ's first format."""
    groups = in_features // group_size
    return IntegerWeight(
        codes=torch.randint(0, 2**bits, (out_features, in_features), dtype=torch.uint8),
        scales=0.01 + 0.1 * torch.rand(out_features, groups),
        zeros=torch.randint(0, 2**bits + 1, (out_features, groups), dtype=torch.uint8),
        group_of=torch.arange(in_features, dtype=torch.int32) // group_size,
        bits=bits,
    )


def act_ordered(weight: IntegerWeight) -> IntegerWeight:
    return replace(weight, group_of=weight.group_of[torch.randperm(len(weight.group_of))])


def assert_equals_float64(weight: IntegerWeight, num_rows: int) -> None:
    packed, weights = pack_int4(weight), weight.dequantize().double()
    x, bias = torch.randn(num_rows, weights.shape[1]), torch.randn(weights.shape[0])
    # one rounding of a float32 is 6e-8 of the sum so far; those of 1536 of them nearly cancel
    bound = 1e-6 * (x.double().abs() @ weights.abs().T + bias.abs())
    for b in (None, bias):
        exact = x.double() @ weights.T + (0 if b is None else b.double())
        for product in (int4_matmul, int4_matmul_reference):
            out = product(x, packed, b)
            assert out.dtype == torch.float32
            assert bool(((out - exact).abs() <= bound).all())


@pytest.mark.parametrize(("out_features", "in_features", "group_size"), SHAPES)
@pytest.mark.parametrize("num_rows", ROWS)
def test_equals_float64(num_rows: int, out_features: int, in_features: int, group_size: int) -> None:
    assert_equals_float64(integer_weight(out_features, in_features, group_size), num_rows)


@pytest.mark.parametrize(("out_features", "in_features", "group_size"), [(40, 576, 32), (192, 1536, 128)])
@pytest.mark.parametrize("num_rows", [1, 7])
def test_act_order_gathers_the_inputs(num_rows: int, out_features: int, in_features: int, group_size: int) -> None:
    weight = act_ordered(integer_weight(out_features, in_features, group_size))
    assert pack_int4(weight).input_order is not None
    assert_equals_float64(weight, num_rows)


@pytest.mark.parametrize("bits", [2, 3])
def test_fewer_bits_lie_in_the_same_codes(bits: int) -> None:
    weight = integer_weight(40, 128, 64, bits)
    assert_equals_float64(weight, 3)
    assert pack_int4(weight).nbytes == pack_int4(integer_weight(40, 128, 64)).nbytes


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("order", [lambda weight: weight, act_ordered], ids=["in order", "act-order"])
def test_both_ways_of_decoding_give_the_weight_to_the_bit(
    order: Callable[[IntegerWeight], IntegerWeight], dtype: torch.dtype
) -> None:
    """The identity as activations reads the weights back: three rows in registers, 192 through a panel."""
    weight = order(integer_weight(40, 192, 64))
    weight = replace(weight, scales=weight.scales.to(dtype))
    packed, expected = pack_int4(weight), weight.dequantize().T
    for num_rows in (3, 192):
        assert torch.equal(int4_matmul(torch.eye(192)[:num_rows], packed), expected[:num_rows])


def test_every_code_meets_every_zero() -> None:
    codes = torch.arange(16, dtype=torch.uint8).repeat(17, 1)
    zeros = torch.arange(17, dtype=torch.uint8)[:, None]
    group_of = torch.zeros(16, dtype=torch.int32)
    weight = IntegerWeight(codes=codes, scales=torch.ones(17, 1), zeros=zeros, group_of=group_of, bits=4)
    expected = torch.arange(16.0)[:, None] - torch.arange(17.0)
    assert torch.equal(int4_matmul(torch.eye(16), pack_int4(weight)), expected)


@pytest.mark.parametrize("order", [lambda weight: weight, act_ordered], ids=["in order", "act-order"])
def test_rows_are_independent(
    order: Callable[[IntegerWeight], IntegerWeight], assert_rows_independent: Callable[..., None]
) -> None:
    packed = pack_int4(order(integer_weight(192, 576, 64)))
    x, bias = torch.randn(50, 576), torch.randn(192)
    assert_rows_independent(lambda rows: int4_matmul(x[rows], packed, bias), len(x))


def test_inputs_may_be_a_slice_of_wider_rows() -> None:
    wide = torch.randn(5, 96)
    for weight in (integer_weight(16, 64, 32), act_ordered(integer_weight(16, 64, 32))):
        packed = pack_int4(weight)
        assert torch.equal(int4_matmul(wide[:, 16:80], packed), int4_matmul(wide[:, 16:80].clone(), packed))


@pytest.mark.parametrize(("out_features", "in_features", "group_size"), SHAPES)
@pytest.mark.parametrize("order", [lambda weight: weight, act_ordered], ids=["in order", "act-order"])
def test_packing_is_undone(
    order: Callable[[IntegerWeight], IntegerWeight], out_features: int, in_features: int, group_size: int
) -> None:
    weight = order(integer_weight(out_features, in_features, group_size))
    assert_same(unpack_int4(pack_int4(weight)), weight)


def assert_same(one: IntegerWeight, other: IntegerWeight) -> None:
    assert one.bits == other.bits
    for name in ("codes", "scales", "zeros", "group_of"):
        left, right = getattr(one, name), getattr(other, name)
        assert left.dtype == right.dtype, name
        assert torch.equal(left, right), name


def test_packed_bytes_are_half_a_byte_and_the_groups() -> None:
    weight = integer_weight(192, 576, 64)
    assert pack_int4(weight).nbytes == 192 * 576 // 2 + 2 * 192 * 9 * 4
    assert pack_int4(act_ordered(weight)).nbytes == pack_int4(weight).nbytes + 8 * 576


def test_concatenated_weights_give_their_products_side_by_side() -> None:
    group_of = act_ordered(integer_weight(16, 128, 32)).group_of
    parts = [replace(integer_weight(rows, 128, 32, bits), group_of=group_of) for rows, bits in ((32, 4), (16, 3))]
    x, whole = torch.randn(4, 128), concatenated(parts)
    products: list[Tensor] = [int4_matmul(x, pack_int4(part)) for part in parts]
    assert torch.equal(int4_matmul(x, pack_int4(whole)), torch.cat(products, dim=1))
    assert whole.bits == 4
    with pytest.raises(ValueError, match="grouped differently"):
        concatenated([parts[0], integer_weight(16, 128, 32)])


@pytest.mark.parametrize(
    ("weight", "reason"),
    [
        (replace(integer_weight(16, 64, 32), bits=8), "8 bits do not fit into the 4"),
        (integer_weight(16, 36, 12), "36 columns are no multiple of 8"),
        (integer_weight(16, 64, 2), "groups of 2 columns"),
        (
            replace(integer_weight(16, 64, 32), group_of=torch.arange(64, dtype=torch.int32) // 48),
            "64 columns do not lie in 2 groups of one size",
        ),
        (
            replace(integer_weight(16, 64, 32), group_of=torch.arange(64, dtype=torch.int32) // 16),
            "64 columns do not lie in 2 groups of one size",
        ),
    ],
)
def test_what_panels_do_not_hold_is_refused(weight: IntegerWeight, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        pack_int4(weight)
