"""4-bit integer weights on a GPU: layout, checkpoints of GPTQ and AWQ, products of one row and of several."""

import pytest
import torch

from kernels.checkpoint_layouts import IntegerWeight
from kernels.gpu.four_bit_gemm import GemmConfig, four_bit_gemm, four_bit_gemm_reference
from kernels.gpu.four_bit_gemv import GemvConfig, Norm, four_bit_gemv, four_bit_gemv_reference
from kernels.gpu.four_bit_matmul import four_bit_matmul
from kernels.gpu.int4 import dequantize_int4, dequantize_int4_reference, pack_int4, unpack_int4
from tests.kernels.gpu.four_bit_weights import activations, dense, poisoned, random_int4

BOUND = 5e-3


@pytest.mark.parametrize(
    ("n", "k", "group"), [(3, 32, 32), (130, 192, 64), (64, 256, 128), (16, 512, 256), (5, 200, 200)]
)
@pytest.mark.parametrize("order", [False, True])
@pytest.mark.parametrize("zeros", [False, True])
def test_unpack_returns_what_pack_was_given(n: int, k: int, group: int, zeros: bool, order: bool, device: str) -> None:
    group_of = torch.arange(k, device=device) // group
    weight = IntegerWeight(
        codes=torch.randint(0, 16, (n, k), dtype=torch.uint8, device=device),
        scales=torch.rand(n, k // group, device=device).to(torch.bfloat16),
        zeros=torch.randint(0 if zeros else 8, 17 if zeros else 9, (n, k // group), device=device).to(torch.uint8),
        group_of=(group_of[torch.randperm(k, device=device)] if order else group_of).to(torch.int32),
        bits=4,
    )
    packed = pack_int4(weight)
    back = unpack_int4(packed)
    for name in ("codes", "scales", "zeros", "group_of"):
        assert torch.equal(getattr(back, name), getattr(weight, name)), name
    torch.testing.assert_close(dequantize_int4_reference(packed).float(), weight.dequantize())
    assert (packed.zeros is not None) == zeros


def test_groups_that_no_kernel_takes_are_refused(device: str) -> None:
    with pytest.raises(ValueError, match="groups of 48"):
        random_int4(8, 96, 48, device, zeros=False)


def test_three_bits_and_fp32_scales_are_held_in_four_and_bf16(device: str) -> None:
    weight = IntegerWeight(
        codes=torch.randint(0, 8, (8, 64), dtype=torch.uint8, device=device),
        scales=torch.rand(8, 2, device=device),
        zeros=torch.full((8, 2), 4, dtype=torch.uint8, device=device),
        group_of=torch.arange(64, dtype=torch.int32, device=device) // 32,
        bits=3,
    )
    packed = pack_int4(weight)
    assert packed.scales.dtype == torch.bfloat16
    torch.testing.assert_close(dequantize_int4_reference(packed).float(), weight.dequantize(), rtol=2**-8, atol=0)


@pytest.mark.parametrize(
    ("n", "k", "group", "zeros"),
    [(40, 256, 128, False), (40, 256, 128, True), (7, 192, 64, True), (9, 96, 32, True), (5, 200, 200, True)],
)
def test_dequantize_writes_every_weight(n: int, k: int, group: int, zeros: bool, device: str, relative_error) -> None:
    packed = random_int4(n, k, group, device, zeros=zeros)
    out = poisoned(n, k, device)
    assert dequantize_int4(packed, out) is out
    assert relative_error(out, dense(packed)) < BOUND


@pytest.mark.parametrize("config", [GemvConfig(rows=16, quads=8, warps=1), GemvConfig(rows=8, quads=32, warps=2)])
@pytest.mark.parametrize(
    ("n", "k", "group", "zeros"),
    [
        (18, 256, 128, False),
        (18, 512, 256, True),
        (7, 192, 64, True),
        (9, 96, 32, False),
        (9, 96, 32, True),
        (5, 200, 200, True),
    ],
)
def test_one_row(n: int, k: int, group: int, zeros: bool, config: GemvConfig, device: str, relative_error) -> None:
    packed, x, out = random_int4(n, k, group, device, zeros=zeros), activations(1, k, device), poisoned(1, n, device)
    bias = torch.randn(n, device=device)
    four_bit_gemv(x, packed, out, bias=bias, config=config)
    assert relative_error(out, four_bit_gemv_reference(x, dense(packed), bias=bias)) < BOUND


@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize("order", [False, True])
def test_one_row_after_a_norm_gated(zeros: bool, order: bool, device: str, relative_error) -> None:
    k = 384
    packed, x = random_int4(22, k, 64, device, zeros=zeros, order=order), activations(1, k, device)
    norm = Norm(weight=torch.rand(k, device=device) + 0.5, eps=1e-5)
    out = poisoned(1, 11, device)
    four_bit_gemv(x, packed, out, norm=norm, gated=True, config=GemvConfig(rows=16, quads=8, warps=1))
    assert relative_error(out, four_bit_gemv_reference(x, dense(packed), norm=norm, gated=True)) < BOUND


def test_one_row_onto_the_residual_in_place(device: str, relative_error) -> None:
    packed, x = random_int4(19, 256, 128, device, zeros=False), activations(1, 256, device)
    residual = activations(1, 19, device)
    expected = four_bit_gemv_reference(x, dense(packed), residual=residual)
    four_bit_gemv(x, packed, residual, residual=residual)
    assert relative_error(residual, expected) < BOUND


def test_one_row_takes_large_activations(device: str, relative_error) -> None:
    packed, x = random_int4(16, 256, 128, device, zeros=False), activations(1, 256, device)
    x[0, 77] = 30000.0
    assert relative_error(four_bit_gemv(x, packed), four_bit_gemv_reference(x, dense(packed))) < BOUND


def test_two_rows_are_not_one(device: str) -> None:
    packed = random_int4(16, 128, 128, device, zeros=False)
    with pytest.raises(ValueError, match="one row"):
        four_bit_gemv(activations(2, 128, device), packed)


@pytest.mark.parametrize(
    ("m", "n", "k", "group", "zeros"),
    [
        (2, 40, 256, 128, False),
        (17, 33, 256, 256, True),
        (3, 64, 192, 64, True),
        (5, 9, 96, 32, True),
        (3, 5, 200, 200, True),
    ],
)
def test_several_rows(m: int, n: int, k: int, group: int, zeros: bool, device: str, relative_error) -> None:
    packed, x, out = random_int4(n, k, group, device, zeros=zeros), activations(m, k, device), poisoned(m, n, device)
    bias = torch.randn(n, device=device)
    four_bit_gemm(x, packed, out, bias)
    assert relative_error(out, four_bit_gemm_reference(x, dense(packed), bias)) < BOUND


@pytest.mark.parametrize("m", [1, 3, 260])
def test_every_path_of_the_dispatch(m: int, device: str, relative_error) -> None:
    packed, x = random_int4(10, 128, 64, device, zeros=True, order=True), activations(m, 128, device)
    bias = torch.randn(10, device=device)
    assert (
        relative_error(four_bit_matmul(x, packed, bias=bias), four_bit_gemm_reference(x, dense(packed), bias)) < BOUND
    )


@pytest.mark.gpu
@pytest.mark.parametrize(("n", "k"), [(6144, 4096), (4096, 14336), (1000, 2048)])
@pytest.mark.parametrize("group", [128, 64, 32])
@pytest.mark.parametrize("zeros", [False, True])
def test_one_row_of_a_large_layer(n: int, k: int, group: int, zeros: bool, relative_error) -> None:
    packed, x, out = random_int4(n, k, group, "cuda", zeros=zeros), activations(1, k, "cuda"), poisoned(1, n, "cuda")
    norm = Norm(weight=torch.rand(k, device="cuda") + 0.5, eps=1e-5)
    assert relative_error(four_bit_gemv(x, packed, out), four_bit_gemv_reference(x, dense(packed))) < BOUND
    four_bit_gemv(x, packed, out, norm=norm)
    assert relative_error(out, four_bit_gemv_reference(x, dense(packed), norm=norm)) < BOUND


@pytest.mark.gpu
@pytest.mark.parametrize("m", [2, 8, 17, 64, 100, 256, 300])
@pytest.mark.parametrize(("n", "k", "group"), [(4096, 4096, 128), (1000, 2048, 64), (6144, 1536, 32)])
@pytest.mark.parametrize("zeros", [False, True])
def test_several_rows_of_a_large_layer(m: int, n: int, k: int, group: int, zeros: bool, relative_error) -> None:
    packed, x, bias = random_int4(n, k, group, "cuda", zeros=zeros), activations(m, k, "cuda"), torch.randn(n).cuda()
    expected = four_bit_gemm_reference(x, dense(packed), bias)
    for _ in range(2):  # the second finds the counters of split products set back
        out = poisoned(m, n, "cuda")
        four_bit_gemm(x, packed, out, bias)
        assert relative_error(out, expected) < BOUND


@pytest.mark.gpu
@pytest.mark.parametrize("config", [
    GemmConfig(n=64, m=8, split=4, warps=4, stages=5),
    GemmConfig(n=64, m=32, split=3, warps=4, stages=3),
    GemmConfig(n=128, m=64, split=1, warps=4, stages=4),
    GemmConfig(n=128, m=16, split=2, warps=8, stages=4),
    GemmConfig(n=256, m=128, split=1, warps=8, stages=4),
])  # fmt: skip
def test_tiles_of_several_rows(config: GemmConfig, relative_error) -> None:
    packed, x, out = (
        random_int4(768, 2048, 128, "cuda", zeros=True),
        activations(8, 2048, "cuda"),
        poisoned(8, 768, "cuda"),
    )
    four_bit_gemm(x, packed, out, config=config)
    assert relative_error(out, four_bit_gemm_reference(x, dense(packed))) < BOUND
