"""dense_matmul against its reference, for bf16 and fp32 weights and shapes that fill no tile."""

from collections.abc import Callable

import pytest
import torch

from kernels.dense_matmul import dense_matmul, dense_matmul_reference, gather_rows, pack_dense, unpack_dense

SHAPES = [(960, 576), (16, 32), (37, 33), (50, 64), (1, 1), (131, 96)]
DTYPES = [torch.bfloat16, torch.float32]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("out_features", "in_features"), SHAPES)
@pytest.mark.parametrize("num_rows", [1, 2, 5, 6, 7, 13, 200])
def test_equals_the_reference(num_rows: int, out_features: int, in_features: int, dtype: torch.dtype) -> None:
    packed = pack_dense(torch.randn(out_features, in_features).to(dtype))
    x, bias = torch.randn(num_rows, in_features), torch.randn(out_features)
    for b in (None, bias):
        reference = dense_matmul_reference(x, packed, b)
        torch.testing.assert_close(dense_matmul(x, packed, b), reference, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("out_features", "in_features"), [(960, 576), (37, 33)])
def test_rows_are_independent(
    out_features: int, in_features: int, dtype: torch.dtype, assert_rows_independent: Callable[..., None]
) -> None:
    packed = pack_dense(torch.randn(out_features, in_features).to(dtype))
    x, bias = torch.randn(150, in_features), torch.randn(out_features)
    assert_rows_independent(lambda rows: dense_matmul(x[rows], packed, bias), len(x))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("out_features", "in_features"), SHAPES)
def test_packing_is_undone(out_features: int, in_features: int, dtype: torch.dtype) -> None:
    weight = torch.randn(out_features, in_features).to(dtype)
    packed = pack_dense(weight)
    assert torch.equal(unpack_dense(packed), weight)
    ids = torch.randint(0, out_features, (9,))
    assert torch.equal(gather_rows(ids, packed), weight[ids].float())


def test_no_rows_and_strided_rows() -> None:
    packed = pack_dense(torch.randn(32, 64))
    assert dense_matmul(torch.empty(0, 64), packed).shape == (0, 32)
    x = torch.randn(3, 128)
    assert torch.equal(dense_matmul(x[:, ::2], packed), dense_matmul(x[:, ::2].contiguous(), packed))


def test_other_weights_are_refused() -> None:
    with pytest.raises(ValueError, match="bfloat16 or float32"):
        pack_dense(torch.zeros(16, 16, dtype=torch.float16))
