"""int8_matmul against an exact product of the quantised values, with and without outliers."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from kernels.int8_matmul import (
    activation_levels,
    dequantize_int8,
    int8_matmul,
    int8_matmul_reference,
    pack_int8,
    quantize_int8,
    unpack_int8,
)

SHAPES = [(960, 576), (16, 32), (37, 33), (50, 64), (131, 1536)]


def activations(num_rows: int, in_features: int) -> Tensor:
    """Some rows have outliers, one sits exactly on the threshold, one row is zero."""
    x = torch.randn(num_rows, in_features).clamp(-5.9, 5.9)
    for row in range(0, num_rows, 2):
        x[row, row % in_features] = 40.0
        x[row, (3 * row + 1) % in_features] = -6.0
    x[-1] = 0
    return x


@pytest.mark.parametrize("threshold", [6.0, None])
@pytest.mark.parametrize(("out_features", "in_features"), SHAPES)
@pytest.mark.parametrize("num_rows", [1, 2, 5, 8, 13, 90])
def test_equals_the_reference(num_rows: int, out_features: int, in_features: int, threshold: float | None) -> None:
    packed = pack_int8(quantize_int8(torch.randn(out_features, in_features)))
    x, bias = activations(num_rows, in_features), torch.randn(out_features)
    for b in (None, bias):
        reference = int8_matmul_reference(x, packed, b, threshold)
        torch.testing.assert_close(int8_matmul(x, packed, b, threshold), reference, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(("out_features", "in_features"), [(960, 576), (37, 33)])
def test_rows_are_independent(
    out_features: int, in_features: int, assert_rows_independent: Callable[..., None]
) -> None:
    packed = pack_int8(quantize_int8(torch.randn(out_features, in_features)))
    x, bias = activations(150, in_features), torch.randn(out_features)
    assert_rows_independent(lambda rows: int8_matmul(x[rows], packed, bias), len(x))


def test_an_outlier_does_not_cost_the_other_values_their_resolution() -> None:
    weight = torch.randn(64, 128)
    x = torch.randn(1, 128)
    x[0, 5] = 1000.0
    packed = pack_int8(quantize_int8(weight))
    exact = x @ dequantize_int8(unpack_int8(packed)).T

    def error(threshold: float) -> float:
        return float((int8_matmul(x, packed, outlier_threshold=threshold) - exact).abs().max())

    assert error(6.0) < 0.5
    assert error(0.0) > 10 * error(6.0)


def test_agrees_with_bitsandbytes_on_one_row() -> None:
    """With one row its rule for outliers (a column of the batch) and ours (a value of the row) are the same."""
    functional = pytest.importorskip("bitsandbytes.functional")
    weight, x = torch.randn(64, 128), activations(1, 128)
    x[0] = torch.randn(128)
    x[0, 17] = 9.0
    ours = quantize_int8(weight)
    qdata, absmax, _ = functional.int8_vectorwise_quant(weight)
    assert torch.equal(ours.qdata, qdata)
    torch.testing.assert_close(ours.scale, absmax / 127)
    quantised, stats, columns = functional.int8_vectorwise_quant(x.clone(), threshold=6.0)
    assert columns.tolist() == [17]
    quantised[:, 17] = 0
    product = (quantised.long() @ qdata.long().T).float() * stats[:, None] * absmax / (127 * 127)
    expected = product + x[:, 17:18] * (qdata[:, 17] * absmax / 127)
    torch.testing.assert_close(int8_matmul(x, pack_int8(ours)), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("out_features", "in_features"), SHAPES)
def test_packing_is_undone(out_features: int, in_features: int) -> None:
    weight = quantize_int8(torch.randn(out_features, in_features))
    unpacked = unpack_int8(pack_int8(weight))
    assert torch.equal(unpacked.qdata, weight.qdata)
    assert torch.equal(unpacked.scale, weight.scale)


def test_a_zero_row_of_weights_stays_zero() -> None:
    weight = torch.randn(16, 32)
    weight[3] = 0
    assert torch.equal(dequantize_int8(quantize_int8(weight))[3], torch.zeros(32))


@pytest.mark.parametrize("threshold", [6.0, None])
def test_twelve_activation_bits_leave_the_weights_error_alone(threshold: float | None) -> None:
    weight, x = torch.randn(131, 1536), torch.randn(7, 1536)
    x[:, 5] = 9.0
    packed = pack_int8(quantize_int8(weight))
    wide = int8_matmul(x, packed, None, threshold, activation_bits=12)
    torch.testing.assert_close(wide, int8_matmul_reference(x, packed, None, threshold, activation_bits=12))
    exact = x @ dequantize_int8(quantize_int8(weight)).T
    narrow = int8_matmul(x, packed, None, threshold)
    assert (wide - exact).norm() < (narrow - exact).norm() / 8
    alone = int8_matmul(x[3:4], packed, None, threshold, activation_bits=12)
    assert torch.equal(alone[0], wide[3])


def test_a_sum_of_products_never_passes_int32() -> None:
    assert activation_levels(12, 1536) == 2047
    assert 127 * activation_levels(12, 14336) * 14336 < 2**31
    k = 14336
    weight, x = torch.full((16, k), 0.5), torch.full((1, k), 2.0)
    packed = pack_int8(quantize_int8(weight))
    torch.testing.assert_close(int8_matmul(x, packed, None, None, activation_bits=12), torch.full((1, 16), float(k)))
