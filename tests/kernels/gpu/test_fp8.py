"""fp8 products against float64: every path, packed and unpacked rows, the rule that chooses."""

import pytest
import torch

from kernels.gpu.fp8 import dequantize_fp8, fp8_matmul, fp8_matmul_reference, fp8_path, pack_fp8
from kernels.gpu.quantized_rows import quantize_rows
from kernels.gpu.scaled_gemm import GemmConfig

BF16_ROUNDING = 8e-3  # the interpreter truncates to bf16, a GPU rounds; Hopper adds fp8 products in 22 bits


def poisoned(m: int, n: int, device: str) -> torch.Tensor:
    return torch.full((m, n), float("nan"), dtype=torch.bfloat16, device=device)


def test_packing_keeps_three_bits_of_mantissa(device, relative_error):
    weight = torch.randn(30, 200, device=device) * torch.logspace(-4, 4, 30, device=device)[:, None]
    weight[3] = 0
    packed = pack_fp8(weight)
    assert packed.data.dtype == torch.float8_e4m3fn
    assert relative_error(dequantize_fp8(packed), weight) < 0.04
    assert packed.data.float().abs().amax(dim=1).unique().tolist() == [0.0, 448.0]


@pytest.mark.parametrize(("m", "n", "k"), [(1, 33, 129), (3, 70, 192), (17, 65, 200), (64, 96, 256)])
def test_rows_in_bf16(m, n, k, device, relative_error):
    packed, bias = pack_fp8(torch.randn(n, k, device=device)), torch.randn(n, device=device)
    x = torch.randn(m, k, dtype=torch.bfloat16, device=device)
    out = fp8_matmul(x, packed, poisoned(m, n, device), bias)
    quantized = x if m == 1 else quantize_rows(x, "fp8")
    assert relative_error(out, fp8_matmul_reference(quantized, packed, bias)) < BF16_ROUNDING
    assert relative_error(out, fp8_matmul_reference(x, packed, bias)) < 0.08


@pytest.mark.parametrize("path", ["triton", "widened", "rows", "tensor"])
@pytest.mark.parametrize("m", [1, 3, 33])
def test_paths_of_quantised_rows(path, m, device, relative_error):
    packed, bias = pack_fp8(torch.randn(64, 192, device=device)), torch.randn(64, device=device)
    x = quantize_rows(torch.randn(m, 192, dtype=torch.bfloat16, device=device), "fp8")
    out = fp8_matmul(x, packed, poisoned(m, 64, device), bias, path=path)
    assert relative_error(out, fp8_matmul_reference(x, packed, bias)) < BF16_ROUNDING


@pytest.mark.parametrize("splits", [1, 4])
@pytest.mark.parametrize("k", [256, 300])
def test_splits_of_k(splits, k, device, relative_error):
    packed = pack_fp8(torch.randn(40, k, device=device))
    x = quantize_rows(torch.randn(5, k, dtype=torch.bfloat16, device=device), "fp8")
    config = GemmConfig(block_m=16, block_n=64, block_k=64, splits=splits, num_warps=4, num_stages=3)
    out = fp8_matmul(x, packed, poisoned(5, 40, device), config=config)
    assert relative_error(out, fp8_matmul_reference(x, packed)) < BF16_ROUNDING


def test_dispatch_rule():
    assert fp8_path(1, 64, 64, quantized=False, has_fp8=True) == "gemv"
    assert fp8_path(1, 64, 64, quantized=True, has_fp8=True) == "triton"
    assert fp8_path(64, 64, 64, quantized=False, has_fp8=False) == "widened"
    assert [fp8_path(m, 64, 64, quantized=True, has_fp8=True) for m in (64, 65)] == ["triton", "rows"]
    assert fp8_path(500, 64, 64, quantized=False, has_fp8=True) == "rows"
    assert fp8_path(500, 65, 64, quantized=False, has_fp8=True) == "triton"


@pytest.mark.gpu
@pytest.mark.parametrize("path", ["triton", "rows", "tensor"])
@pytest.mark.parametrize("m", [2, 16, 48, 128, 300])
def test_large(path, m, device, relative_error):
    packed = pack_fp8(torch.randn(4096, 4096, device=device))
    x = quantize_rows(torch.randn(m, 4096, dtype=torch.bfloat16, device=device), "fp8")
    out = fp8_matmul(x, packed, poisoned(m, 4096, device), path=path)
    assert relative_error(out, fp8_matmul_reference(x, packed)) < BF16_ROUNDING
