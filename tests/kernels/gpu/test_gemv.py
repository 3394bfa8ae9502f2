"""The one-row product against float64: every weight type and fusion, odd shapes, and the inline assembly on a GPU."""

import pytest
import torch

from kernels.gpu import gemv as module
from kernels.gpu.gemv import GemvConfig, gemv, gemv_reference

BF16_ROUNDING = 8e-3  # the interpreter truncates to bf16, a GPU rounds
SHAPES = ((17, 64), (5, 576), (33, 2048), (7, 2900), (4, 5120))


def weight_of(kind: str, n: int, k: int, device: str) -> tuple[torch.Tensor, torch.Tensor | None]:
    weight = torch.randn(n, k, device=device)
    scale = torch.rand(n, device=device) / 100 + 1e-3
    if kind == "int8":
        return (weight * 40).round().clamp(-127, 127).to(torch.int8), scale
    if kind == "fp8":
        return (weight * 100).clamp(-448, 448).to(torch.float8_e4m3fn), scale
    return weight.to(torch.bfloat16 if kind == "bf16" else torch.float32), None


def poisoned(n: int, device: str) -> torch.Tensor:
    return torch.full((1, n), float("nan"), dtype=torch.bfloat16, device=device)


@pytest.mark.parametrize("kind", ["bf16", "fp32", "int8", "fp8"])
@pytest.mark.parametrize(("n", "k"), SHAPES)
def test_plain(kind, n, k, device, relative_error):
    weight, scale = weight_of(kind, n, k, device)
    x = torch.randn(1, k, dtype=torch.bfloat16, device=device)
    out = gemv(x, weight, poisoned(n, device), scale=scale)
    assert relative_error(out, gemv_reference(x, weight, scale=scale)) < BF16_ROUNDING


@pytest.mark.parametrize("kind", ["bf16", "int8", "fp8"])
@pytest.mark.parametrize("k", [576, 2048, 2900])
def test_norm_gate_and_bias(kind, k, device, relative_error):
    weight, scale = weight_of(kind, 22, k, device)
    x = 3 * torch.randn(1, k, dtype=torch.bfloat16, device=device)
    fusions = {
        "scale": scale,
        "norm": (torch.rand(k, device=device) + 0.5, 1e-5),
        "gated": True,
        "bias": torch.randn(22, device=device),
    }
    out = gemv(x, weight, poisoned(11, device), **fusions)
    assert relative_error(out, gemv_reference(x, weight, **fusions)) < BF16_ROUNDING


@pytest.mark.parametrize("rows", [1, 2, 4])
def test_residual_may_be_the_output(rows, device, relative_error):
    weight, _ = weight_of("bf16", 19, 1100, device)
    x = torch.randn(1, 1100, dtype=torch.bfloat16, device=device)
    residual = torch.randn(1, 19, dtype=torch.bfloat16, device=device)
    expected = gemv_reference(x, weight, residual=residual)
    config = GemvConfig(rows=rows, block_k=512, num_warps=4)
    out = gemv(x, weight, residual, residual=residual, config=config)
    assert out is residual
    assert relative_error(out, expected) < BF16_ROUNDING


@pytest.mark.parametrize("tiles_ahead", [1, 2, 3, 9])
@pytest.mark.parametrize(("rows", "gated"), [(1, True), (2, True), (2, False), (4, False)])
def test_tiles_ahead(tiles_ahead, rows, gated, device, relative_error):
    weight, scale = weight_of("int8", 10, 3 * 512 + 256, device)
    x = torch.randn(1, weight.shape[1], dtype=torch.bfloat16, device=device)
    outputs = 5 if gated else 10
    residual = torch.randn(1, outputs, dtype=torch.bfloat16, device=device)
    fusions = {"scale": scale, "gated": gated, "residual": residual, "bias": torch.randn(10, device=device)}
    config = GemvConfig(rows=rows, block_k=512, num_warps=4, tiles_ahead=tiles_ahead)
    out = gemv(x, weight, poisoned(outputs, device), config=config, **fusions)
    assert relative_error(out, gemv_reference(x, weight, **fusions)) < BF16_ROUNDING


def test_norm_weight_in_bf16(device, relative_error):
    weight, _ = weight_of("bf16", 6, 640, device)
    x = torch.randn(1, 640, dtype=torch.bfloat16, device=device)
    norm = (torch.rand(640, device=device).bfloat16(), 1e-5)
    out = gemv(x, weight, poisoned(6, device), norm=norm)
    assert relative_error(out, gemv_reference(x, weight, norm=norm)) < BF16_ROUNDING


def test_fp32_row(device, relative_error):
    weight, scale = weight_of("int8", 9, 600, device)
    x = torch.randn(1, 600, device=device)
    assert relative_error(gemv(x, weight, scale=scale), gemv_reference(x, weight, scale=scale)) < 1e-6


def test_every_int8_is_decoded(device):
    weight = torch.arange(-128, 128, device=device).to(torch.int8)[:, None].repeat(1, 32).contiguous()
    x = torch.zeros(1, 32, device=device)
    x[0, 5] = 1.0
    out = gemv(x, weight, scale=torch.ones(256, device=device))
    assert out.flatten().tolist() == list(range(-128, 128))


def test_shapes_are_checked(device):
    weight, scale = weight_of("int8", 8, 64, device)
    with pytest.raises(ValueError, match="one contiguous row"):
        gemv(torch.randn(1, 32, device=device), weight, scale=scale)
    with pytest.raises(ValueError, match="scale"):
        gemv(torch.randn(1, 64, device=device), weight)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["bf16", "int8", "fp8"])
@pytest.mark.parametrize(("n", "k"), [(6144, 4096), (4096, 14336)])
def test_large(kind, n, k, device, relative_error):
    weight, scale = weight_of(kind, n, k, device)
    x = torch.randn(1, k, dtype=torch.bfloat16, device=device)
    for rows, block_k, num_warps in ((1, 1024, 4), (2, 2048, 4), (4, 4096, 8), (1, 4096, 2)):
        config = GemvConfig(rows=rows, block_k=block_k, num_warps=num_warps, tiles_ahead=4)
        out = gemv(x, weight, poisoned(n, device), scale=scale, config=config)
        assert relative_error(out, gemv_reference(x, weight, scale=scale)) < BF16_ROUNDING


@pytest.mark.gpu
def test_assembly_is_the_portable_decode(device, monkeypatch):
    weight, scale = weight_of("int8", 64, 4096, device)
    x = torch.randn(1, 4096, device=device)
    by_assembly = gemv(x, weight, scale=scale)
    launch = module._gemv_kernel

    class Portable:
        def __getitem__(self, grid):
            return lambda *args, **options: launch[grid](*args, **{**options, "ASM": False})

    monkeypatch.setattr(module, "_gemv_kernel", Portable())
    assert torch.equal(gemv(x, weight, scale=scale), by_assembly)
