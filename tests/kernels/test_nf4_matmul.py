"""nf4: the quantised values against bitsandbytes', the product against its reference."""

from collections.abc import Callable

import pytest
import torch

from kernels.nf4_matmul import (
    DoubleQuant,
    dequantize_nf4,
    dynamic_code,
    nf4_matmul,
    nf4_matmul_reference,
    pack_nf4,
    quantize_nf4,
    unpack_nf4,
)
from kernels.packing import NF4_TABLE

SHAPES = [(960, 576), (16, 64), (37, 128), (131, 1536)]


@pytest.mark.parametrize(("out_features", "in_features"), SHAPES)
@pytest.mark.parametrize("num_rows", [1, 2, 5, 6, 7, 13, 90])
def test_equals_the_reference(num_rows: int, out_features: int, in_features: int) -> None:
    packed = pack_nf4(quantize_nf4(torch.randn(out_features, in_features)))
    x, bias = torch.randn(num_rows, in_features), torch.randn(out_features)
    for b in (None, bias):
        reference = nf4_matmul_reference(x, packed, b)
        torch.testing.assert_close(nf4_matmul(x, packed, b), reference, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(("out_features", "in_features"), [(960, 576), (37, 128)])
def test_rows_are_independent(
    out_features: int, in_features: int, assert_rows_independent: Callable[..., None]
) -> None:
    packed = pack_nf4(quantize_nf4(torch.randn(out_features, in_features)))
    x, bias = torch.randn(150, in_features), torch.randn(out_features)
    assert_rows_independent(lambda rows: nf4_matmul(x[rows], packed, bias), len(x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("out_features", "in_features"), SHAPES)
def test_values_are_those_of_bitsandbytes(out_features: int, in_features: int, dtype: torch.dtype) -> None:
    functional = pytest.importorskip("bitsandbytes.functional")
    weight = torch.randn(out_features, in_features).to(dtype)
    codes, state = functional.quantize_4bit(weight, quant_type="nf4", blocksize=64)
    ours = quantize_nf4(weight)
    packed_codes = codes.view(out_features, in_features // 2)
    assert torch.equal(ours.qdata, torch.stack([packed_codes >> 4, packed_codes & 15], dim=-1).flatten(1))
    assert torch.equal(ours.absmax.flatten(), state.absmax)
    if dtype is torch.float32:
        assert torch.equal(dequantize_nf4(ours), functional.dequantize_4bit(codes, state))


def test_double_quantisation_is_that_of_bitsandbytes() -> None:
    """Its CPU library takes the farther of two neighbours for about 0.2 % of the values, next to a midpoint."""
    functional = pytest.importorskip("bitsandbytes.functional")
    weight = torch.randn(960, 576)
    _, state = functional.quantize_4bit(weight, quant_type="nf4", blocksize=64, compress_statistics=True)
    absmax = quantize_nf4(weight, double_quant=True).absmax
    assert isinstance(absmax, DoubleQuant)
    assert torch.equal(absmax.code, functional.create_dynamic_map())
    assert torch.equal(absmax.offset, state.offset)
    assert torch.equal(absmax.scale, state.state2.absmax)
    assert (absmax.qdata != state.absmax.flatten()).float().mean() < 0.005


@pytest.mark.parametrize(("out_features", "in_features"), SHAPES)
def test_packing_is_undone(out_features: int, in_features: int) -> None:
    weight = quantize_nf4(torch.randn(out_features, in_features))
    unpacked = unpack_nf4(pack_nf4(weight))
    assert torch.equal(unpacked.qdata, weight.qdata)
    assert torch.equal(unpacked.absmax, weight.absmax)


def test_every_code_is_looked_up() -> None:
    """The identity as activations reads the weights back, exactly."""
    codes = torch.arange(16 * 64).view(16, 64) % 16
    weight = torch.tensor(NF4_TABLE)[codes] * 0.37
    packed = pack_nf4(quantize_nf4(weight))
    expected = dequantize_nf4(unpack_nf4(packed))
    for num_rows in (1, 64):
        assert torch.equal(nf4_matmul(torch.eye(64)[:num_rows], packed), expected.T[:num_rows])


def test_packed_bytes_are_half_a_byte_and_the_scales() -> None:
    assert pack_nf4(quantize_nf4(torch.randn(960, 576))).nbytes == 960 * 576 // 2 + 960 * 9 * 4


def test_rows_that_hold_no_whole_block_are_refused() -> None:
    with pytest.raises(ValueError, match="blocks of 64"):
        quantize_nf4(torch.randn(16, 96))


def test_the_dynamic_code_is_sorted_and_has_256_values() -> None:
    code = dynamic_code(torch.device("cpu"))
    assert len(code) == 256
    assert bool((code[1:] > code[:-1]).all())
