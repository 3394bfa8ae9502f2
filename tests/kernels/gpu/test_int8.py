"""LLM.int8() on a GPU against float64 of the same semantics, and its pieces: rows, outliers, the 8-bit product."""

import pytest
import torch

from kernels.gpu import int8
from kernels.gpu.int8 import dequantize_int8, int8_matmul, int8_matmul_reference, int8_path, pack_int8
from kernels.gpu.scaled_gemm import GemmConfig, scaled_gemm, scaled_gemm_reference

BF16_ROUNDING = 8e-3  # the interpreter truncates to bf16, a GPU rounds
SHAPES = ((1, 33, 129), (3, 70, 192), (17, 65, 200), (64, 96, 256))


def rows_with_outliers(m: int, k: int, device: str, columns: int) -> torch.Tensor:
    x = torch.randn(m, k, device=device).clamp(-5, 5)
    for column in torch.randperm(k)[:columns].tolist():
        x[torch.randint(m, ()), column] = 60.0 * torch.rand(()).item() + 6.0
    return x.bfloat16()


def poisoned(m: int, n: int, device: str) -> torch.Tensor:
    return torch.full((m, n), float("nan"), dtype=torch.bfloat16, device=device)


@pytest.mark.parametrize("planted", [0, 5, 40])
@pytest.mark.parametrize(("m", "n", "k"), SHAPES)
def test_against_float64(m, n, k, planted, device, relative_error):
    packed = pack_int8(torch.randn(n, k, device=device))
    x = rows_with_outliers(m, k, device, planted)
    out = int8_matmul(x, packed, poisoned(m, n, device))
    assert relative_error(out, int8_matmul_reference(x, packed)) < BF16_ROUNDING


@pytest.mark.parametrize("threshold", [None, 0.0])
def test_no_threshold_takes_nothing_apart(threshold, device, relative_error):
    packed = pack_int8(torch.randn(40, 160, device=device))
    x, bias = rows_with_outliers(20, 160, device, 3), torch.randn(40, device=device)
    out = int8_matmul(x, packed, poisoned(20, 40, device), bias, threshold)
    assert relative_error(out, int8_matmul_reference(x, packed, bias, threshold)) < BF16_ROUNDING


def test_outliers_are_worth_taking_apart(device, relative_error):
    weight = torch.randn(48, 256, device=device)
    packed, x = pack_int8(weight), rows_with_outliers(32, 256, device, 40)
    exact = x.double() @ dequantize_int8(packed).double().T
    apart = relative_error(int8_matmul(x, packed), exact)
    together = relative_error(int8_matmul(x, packed, outlier_threshold=None), exact)
    assert apart < 0.5 * together


@pytest.mark.parametrize("path", ["weight_only", "int8"])
def test_paths_of_one_row(path, device, relative_error):
    packed, x = pack_int8(torch.randn(24, 96, device=device)), rows_with_outliers(1, 96, device, 2)
    out = int8_matmul(x, packed, poisoned(1, 24, device), path=path)
    assert relative_error(out, int8_matmul_reference(x, packed, path=path)) < BF16_ROUNDING


@pytest.mark.parametrize("k", [96, 4100])
def test_rows_and_list_of_columns(k, device):
    x = rows_with_outliers(5, k, device, 7)
    x[3] = 0
    q, scale, outliers = int8.quantize_with_outliers(x, 6.0)
    expected_q, expected_scale, has_outlier = int8.quantize_with_outliers_reference(x, 6.0)
    assert torch.allclose(scale, expected_scale)
    assert (q.int() - expected_q.int()).abs().max() <= 1  # a product that ends on .5 may round either way
    assert (q != expected_q).float().mean() < 1e-2
    assert outliers.columns[: int(outliers.count)].tolist() == has_outlier.nonzero().flatten().tolist()


@pytest.mark.parametrize("splits", [1, 2, 4])
@pytest.mark.parametrize("k", [256, 400, 203])
def test_splits_of_k_with_outliers(splits, k, device, relative_error):
    packed, x = pack_int8(torch.randn(70, k, device=device)), rows_with_outliers(19, k, device, 6)
    config = GemmConfig(block_m=16, block_n=64, block_k=64, splits=splits, num_warps=4, num_stages=3)
    bias = torch.randn(70, device=device)
    out = int8_matmul(x, packed, poisoned(19, 70, device), bias, config=config)
    assert relative_error(out, int8_matmul_reference(x, packed, bias)) < BF16_ROUNDING


def test_exact_without_rounding(device):
    a = torch.randint(-127, 128, (17, 512), dtype=torch.int8, device=device)
    w = torch.randint(-127, 128, (66, 512), dtype=torch.int8, device=device)
    ones = torch.ones(66, device=device)
    out = torch.full((17, 66), float("nan"), device=device)
    scaled_gemm(a, ones[:17], w, ones, out)
    assert torch.equal(out.double(), scaled_gemm_reference(a, ones[:17], w, ones))


def test_dispatch_rule():
    assert [int8_path(rows) for rows in (1, 2, 16, 17)] == ["gemv", "weight_only", "weight_only", "int8"]


def test_shapes_are_checked(device):
    w = torch.zeros(16, 32, dtype=torch.int8, device=device)
    with pytest.raises(ValueError, match="contiguous rows of 32"):
        scaled_gemm(torch.zeros(4, 16, dtype=torch.int8, device=device), w[0], w, w[0])
    with pytest.raises(ValueError, match="scale"):
        scaled_gemm(torch.zeros(4, 32, dtype=torch.int8, device=device), None, w, w[0])


@pytest.mark.gpu
@pytest.mark.parametrize("m", [2, 16, 17, 64, 128, 300])
@pytest.mark.parametrize(("n", "k"), [(4096, 4096), (1000, 14336)])
def test_large(m, n, k, device, relative_error):
    packed, x = pack_int8(torch.randn(n, k, device=device)), rows_with_outliers(m, k, device, 50)
    out = int8_matmul(x, packed, poisoned(m, n, device))
    assert relative_error(out, int8_matmul_reference(x, packed)) < BF16_ROUNDING
