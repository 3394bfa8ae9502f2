"""4-bit NormalFloat weights on a GPU: layout, one-row, several-row and dequantised products."""

import pytest
import torch

from kernels.gpu.four_bit_gemm import four_bit_gemm, four_bit_gemm_reference
from kernels.gpu.four_bit_gemv import GemvConfig, Norm, four_bit_gemv, four_bit_gemv_reference
from kernels.gpu.four_bit_matmul import four_bit_matmul
from kernels.gpu.nf4 import dequantize_nf4_words, pack_nf4_words, unpack_nf4_words
from kernels.nf4_matmul import block_absmax, dequantize_nf4, quantize_nf4
from tests.kernels.gpu.four_bit_weights import activations, dense, poisoned, random_nf4

BOUND = 5e-3


@pytest.mark.parametrize("double_quant", [False, True])
def test_unpack_returns_the_codes_and_rounded_absmax(double_quant: bool, device: str, relative_error) -> None:
    weight = quantize_nf4(torch.randn(70, 192, device=device), double_quant=double_quant)
    packed = pack_nf4_words(weight)
    back = unpack_nf4_words(packed)
    assert torch.equal(back.qdata, weight.qdata)
    assert torch.equal(block_absmax(back), block_absmax(weight).half().float())
    assert relative_error(dense(packed), dequantize_nf4(weight)) < 5e-4


@pytest.mark.parametrize(("n", "k", "block"), [(40, 256, 64), (7, 192, 64), (9, 96, 32), (12, 256, 128)])
def test_dequantize_writes_every_weight(n: int, k: int, block: int, device: str, relative_error) -> None:
    packed, out = random_nf4(n, k, block, device), poisoned(n, k, device)
    dequantize_nf4_words(packed, out)
    assert relative_error(out, dense(packed)) < BOUND


@pytest.mark.parametrize(("n", "k", "block"), [(18, 256, 64), (7, 192, 64), (9, 96, 32), (12, 256, 128)])
def test_one_row(n: int, k: int, block: int, device: str, relative_error) -> None:
    packed, x, out = random_nf4(n, k, block, device), activations(1, k, device), poisoned(1, n, device)
    four_bit_gemv(x, packed, out, config=GemvConfig(rows=16, quads=8, warps=1))
    assert relative_error(out, four_bit_gemv_reference(x, dense(packed))) < BOUND


def test_one_row_after_a_norm_gated(device: str, relative_error) -> None:
    packed, x, out = random_nf4(22, 192, 64, device), activations(1, 192, device), poisoned(1, 11, device)
    norm = Norm(weight=torch.rand(192, device=device) + 0.5, eps=1e-5)
    four_bit_gemv(x, packed, out, norm=norm, gated=True, config=GemvConfig(rows=16, quads=8, warps=1))
    assert relative_error(out, four_bit_gemv_reference(x, dense(packed), norm=norm, gated=True)) < BOUND


@pytest.mark.parametrize(("m", "n", "k", "block"), [(2, 40, 256, 64), (17, 9, 96, 32), (3, 33, 256, 128)])
def test_several_rows(m: int, n: int, k: int, block: int, device: str, relative_error) -> None:
    packed, x, out = random_nf4(n, k, block, device), activations(m, k, device), poisoned(m, n, device)
    four_bit_gemm(x, packed, out)
    assert relative_error(out, four_bit_gemm_reference(x, dense(packed))) < BOUND


@pytest.mark.parametrize("m", [1, 3, 260])
def test_every_path_of_the_dispatch(m: int, device: str, relative_error) -> None:
    packed, x, bias = random_nf4(10, 128, 64, device), activations(m, 128, device), torch.randn(10, device=device)
    out = four_bit_matmul(x, packed, bias=bias)
    assert relative_error(out, four_bit_gemm_reference(x, dense(packed), bias)) < BOUND


@pytest.mark.gpu
@pytest.mark.parametrize("m", [1, 2, 16, 100, 256])
@pytest.mark.parametrize(("n", "k"), [(4096, 4096), (1000, 14336)])
@pytest.mark.parametrize("block", [64, 128, 32])
def test_a_large_layer(m: int, n: int, k: int, block: int, relative_error) -> None:
    packed, x, out = random_nf4(n, k, block, "cuda"), activations(m, k, "cuda"), poisoned(m, n, "cuda")
    four_bit_matmul(x, packed, out)
    assert relative_error(out, four_bit_gemm_reference(x, dense(packed))) < BOUND
