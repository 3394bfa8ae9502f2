"""silu(gate) * up against float64, with 8-bit rows and without, at odd widths and far ends of the gate."""

import pytest
import torch

from kernels.gpu.activation import silu_mul, silu_mul_reference
from kernels.gpu.quantized_rows import quantize_rows_reference
from tests.kernels.gpu.rounding import quantization_error


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(("rows", "width"), [(1, 1536), (3, 3000), (17, 96), (2, 1)])
def test_close_to_float64(device, relative_error, dtype, rows, width):
    gate_up = torch.randn(rows, 2 * width, dtype=dtype, device=device)
    out = torch.full((rows, width), float("nan"), dtype=dtype, device=device)
    assert silu_mul(gate_up, out=out) is out
    assert relative_error(out, silu_mul_reference(gate_up)) < (4e-3 if dtype == torch.bfloat16 else 1e-6)


@pytest.mark.parametrize("kind", ["fp8", "int8"])
@pytest.mark.parametrize(("rows", "width"), [(1, 1536), (3, 3000), (17, 96)])
def test_quantized(device, relative_error, kind, rows, width):
    gate_up = torch.randn(rows, 2 * width, dtype=torch.bfloat16, device=device)
    out, expected = silu_mul(gate_up, quantize=kind), silu_mul_reference(gate_up)
    assert relative_error(out.data.float() * out.scale[:, None], expected) < quantization_error(expected, kind)
    wanted = quantize_rows_reference(expected.float(), kind)
    assert torch.allclose(out.scale, wanted.scale, rtol=1e-5)
    assert (out.data.float() != wanted.data.float()).float().mean() < 0.01


def test_far_gates_are_zero_or_themselves(device):
    gates = torch.tensor([-1e4, -200.0, -100.0, 0.0, 100.0, 200.0, 1e4], device=device)
    out = silu_mul(torch.cat([gates, torch.ones_like(gates)])[None])
    assert torch.equal(out[0], torch.where(gates > 0, gates, torch.zeros_like(gates))) or torch.allclose(
        out[0], gates.clamp(min=0), atol=1e-30
    )


@pytest.mark.gpu
@pytest.mark.parametrize("kind", [None, "fp8", "int8"])
@pytest.mark.parametrize(("rows", "width"), [(8192, 14336), (33, 28672), (1, 28672)])
def test_large_on_the_card(device, relative_error, kind, rows, width):
    gate_up = torch.randn(rows, 2 * width, dtype=torch.bfloat16, device=device)
    out = silu_mul(gate_up, quantize=kind)
    rows = min(rows, 64)
    got = out[-rows:] if kind is None else out.data[-rows:].float() * out.scale[-rows:, None]
    expected = silu_mul_reference(gate_up[-rows:])
    assert relative_error(got, expected) < (4e-3 if kind is None else quantization_error(expected, kind))
