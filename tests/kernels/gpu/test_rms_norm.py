"""The norm of rows against float64: odd shapes, residual in place, 8-bit rows, rows that must not look valid."""

import pytest
import torch

from kernels.gpu.quantized_rows import QuantizedRows, quantize_rows, quantize_rows_reference
from kernels.gpu.rms_norm import RmsNormConfig, rms_norm, rms_norm_reference
from tests.kernels.gpu.rounding import quantization_error

EPS = 1e-5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(("rows", "width"), [(1, 576), (3, 4096), (17, 96), (1030, 64), (2, 1)])
@pytest.mark.parametrize("with_residual", [False, True])
def test_close_to_float64(device, relative_error, dtype, rows, width, with_residual):
    x = torch.randn(rows, width, dtype=dtype, device=device)
    weight = torch.randn(width, device=device)
    residual = torch.randn(rows, width, dtype=dtype, device=device) if with_residual else None
    expected_residual = residual.clone() if with_residual else None
    expected = rms_norm_reference(x, weight, EPS, expected_residual)
    out = torch.full_like(x, float("nan"))
    assert rms_norm(x, weight, EPS, residual, out=out) is out
    assert relative_error(out, expected) < (4e-3 if dtype == torch.bfloat16 else 1e-5)
    if with_residual:
        assert torch.equal(residual, expected_residual)


@pytest.mark.parametrize(("rows_per_tile", "tiles"), [(1, 4), (4, 1), (2, 3)])
def test_any_tiling_gives_the_same_bits(device, rows_per_tile, tiles):
    x, weight = torch.randn(13, 200, device=device), torch.randn(200, device=device)
    config = RmsNormConfig(rows_per_tile=rows_per_tile, tiles_per_program=tiles, num_warps=4)
    out = rms_norm(x, weight, EPS, config=config)
    assert torch.allclose(out, rms_norm(x, weight, EPS), rtol=1e-6)


@pytest.mark.parametrize("kind", [None, "fp8"])
def test_weight_in_bf16(device, relative_error, kind):
    x, weight = torch.randn(5, 300, dtype=torch.bfloat16, device=device), torch.randn(300, device=device).bfloat16()
    out, expected = rms_norm(x, weight, EPS, quantize=kind), rms_norm_reference(x, weight, EPS)
    got = out if kind is None else out.data.float() * out.scale[:, None]
    assert relative_error(got, expected) < (4e-3 if kind is None else quantization_error(expected, kind))


def test_strided_rows(device, relative_error):
    wide = torch.randn(5, 300, dtype=torch.bfloat16, device=device)
    weight = torch.randn(128, device=device)
    out = rms_norm(wide[:, 100:228], weight, EPS)
    assert relative_error(out, rms_norm_reference(wide[:, 100:228], weight, EPS)) < 4e-3


@pytest.mark.parametrize("kind", ["fp8", "int8"])
@pytest.mark.parametrize(("rows", "width"), [(1, 576), (3, 4096), (17, 96)])
def test_quantized_rows_stand_for_the_norm(device, relative_error, kind, rows, width):
    x = torch.randn(rows, width, dtype=torch.bfloat16, device=device)
    residual, weight = torch.randn_like(x), torch.randn(width, device=device)
    expected_residual = residual.clone()
    expected = rms_norm_reference(x, weight, EPS, expected_residual)
    out = rms_norm(x, weight, EPS, residual, quantize=kind)
    assert isinstance(out, QuantizedRows)
    assert torch.equal(residual, expected_residual)
    assert relative_error(out.data.float() * out.scale[:, None], expected) < quantization_error(expected, kind)
    wanted = quantize_rows_reference(expected.float(), kind)
    assert torch.allclose(out.scale, wanted.scale, rtol=1e-5)
    assert (out.data.float() != wanted.data.float()).float().mean() < 0.01  # a neighbour where rounding was a tie


@pytest.mark.parametrize("kind", ["fp8", "int8"])
def test_quantize_rows(device, kind):
    x = torch.randn(7, 300, device=device) * torch.logspace(-6, 6, 7, device=device)[:, None]
    x[2] = 0
    out, wanted = quantize_rows(x, kind), quantize_rows_reference(x, kind)
    assert torch.allclose(out.scale, wanted.scale, rtol=1e-6)
    assert (out.data.float() != wanted.data.float()).float().mean() < 0.01
    assert out.data[2].float().abs().max() == 0
    assert out.scale[2] == 1


def test_int8_rounds_half_to_even(device):
    x = torch.tensor([[127.0, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5, -127.0]], device=device)
    assert quantize_rows(x, "int8").data.tolist() == [[127, 0, 2, 2, 0, -2, -2, -127]]


@pytest.mark.parametrize("kind", ["fp8", "int8"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_a_row_with_a_bad_element_has_scale_nan(device, kind, bad):
    x = torch.randn(3, 100, device=device)
    x[1, 37] = bad
    for scale in (quantize_rows(x, kind).scale, rms_norm(x, torch.ones(100, device=device), EPS, quantize=kind).scale):
        assert scale.isnan().tolist() == [False, True, False]


@pytest.mark.gpu
@pytest.mark.parametrize("kind", [None, "fp8", "int8"])
@pytest.mark.parametrize(("rows", "width"), [(8192, 4096), (257, 8192), (33, 16384)])
def test_large_on_the_card(device, relative_error, kind, rows, width):
    x = torch.randn(rows, width, dtype=torch.bfloat16, device=device)
    residual, weight = torch.randn_like(x), torch.randn(width, device=device)
    expected = rms_norm_reference(x, weight, EPS, residual.clone())
    out = rms_norm(x, weight, EPS, residual, quantize=kind)
    got = out if kind is None else out.data.float() * out.scale[:, None]
    assert relative_error(got, expected) < (4e-3 if kind is None else quantization_error(expected, kind))


def test_too_wide_is_refused(device):
    with pytest.raises(ValueError, match="16384"):
        rms_norm(torch.zeros(1, 16385, device=device), torch.zeros(16385, device=device), EPS)
