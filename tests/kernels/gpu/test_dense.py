"""Unquantised products against float64: every path, odd shapes, splits of K, logits in fp32, the rule that chooses."""

import pytest
import torch

from kernels.gpu.dense import dense_path, dense_rows, dense_rows_reference
from kernels.gpu.scaled_gemm import GemmConfig

BF16_ROUNDING = 8e-3  # the interpreter truncates to bf16, a GPU rounds


def poisoned(m: int, n: int, device: str, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.full((m, n), float("nan"), dtype=dtype, device=device)


def random(*shape: int, device: str) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.bfloat16, device=device)


@pytest.mark.parametrize("path", ["tiles", "library", None])
@pytest.mark.parametrize(("m", "n", "k"), [(1, 33, 136), (3, 70, 192), (17, 65, 203), (40, 96, 256)])
def test_against_float64(path, m, n, k, device, relative_error):
    x, weight, bias = random(m, k, device=device), random(n, k, device=device), torch.randn(n, device=device)
    out = poisoned(m, n, device)
    assert dense_rows(x, weight, out, bias, path=path) is out
    assert relative_error(out, dense_rows_reference(x, weight, bias)) < BF16_ROUNDING
    assert relative_error(dense_rows(x, weight, path=path), dense_rows_reference(x, weight)) < BF16_ROUNDING


@pytest.mark.parametrize("path", ["tiles", "library"])
@pytest.mark.parametrize("m", [2, 33])
def test_fp32_out(path, m, device, relative_error):
    x, weight = random(m, 128, device=device), random(72, 128, device=device)
    out = dense_rows(x, weight, poisoned(m, 72, device, torch.float32), path=path)
    assert relative_error(out, dense_rows_reference(x, weight)) < 1e-5


def test_one_row_in_fp32(device, relative_error):
    x, weight = random(1, 128, device=device), random(72, 128, device=device)
    out = dense_rows(x, weight, poisoned(1, 72, device, torch.float32))
    assert relative_error(out, dense_rows_reference(x, weight)) < 1e-5


@pytest.mark.parametrize("splits", [1, 2, 4])
@pytest.mark.parametrize("k", [512, 400])
def test_splits_of_k(splits, k, device, relative_error):
    x, weight, bias = random(5, k, device=device), random(70, k, device=device), torch.randn(70, device=device)
    config = GemmConfig(block_m=16, block_n=64, block_k=64, splits=splits, num_warps=4, num_stages=3)
    out = dense_rows(x, weight, poisoned(5, 70, device), bias, path="tiles", config=config)
    assert relative_error(out, dense_rows_reference(x, weight, bias)) < BF16_ROUNDING


def test_dispatch_rule():
    assert [dense_path(rows, tiles=True) for rows in (1, 2, 64, 65)] == ["gemv", "tiles", "tiles", "library"]
    assert [dense_path(rows, tiles=False) for rows in (1, 2)] == ["gemv", "library"]


@pytest.mark.gpu
@pytest.mark.parametrize("m", [2, 16, 17, 64, 128])
@pytest.mark.parametrize(("n", "k"), [(4096, 4096), (28672, 4096), (1000, 14336)])
@pytest.mark.parametrize("early_steps", [0, 4])
def test_large(m, n, k, early_steps, device, relative_error):
    x, weight = random(m, k, device=device), random(n, k, device=device)
    out = dense_rows(x, weight, poisoned(m, n, device), path="tiles")
    assert relative_error(out, dense_rows_reference(x, weight)) < BF16_ROUNDING
    config = GemmConfig(
        block_m=64, block_n=64, block_k=128, splits=2, num_warps=4, num_stages=3, early_steps=early_steps
    )
    out = dense_rows(x, weight, poisoned(m, n, device), path="tiles", config=config)
    assert relative_error(out, dense_rows_reference(x, weight)) < BF16_ROUNDING
