"""rms_norm against its reference, with and without the residual sum."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from kernels.rms_norm import rms_norm, rms_norm_reference


@pytest.mark.parametrize("columns", [576, 64, 37, 1])
@pytest.mark.parametrize("num_rows", [1, 5, 300])
def test_equals_the_reference(num_rows: int, columns: int) -> None:
    x, weight = 10 * torch.randn(num_rows, columns), torch.randn(columns)
    expected = rms_norm_reference(x, weight, 1e-5)
    torch.testing.assert_close(rms_norm(x, weight, 1e-5), expected, rtol=2e-6, atol=1e-6)


def test_the_residual_grows_in_place() -> None:
    x, weight, residual = torch.randn(7, 576), torch.randn(576), torch.randn(7, 576)
    summed = residual + x
    out = rms_norm(x, weight, 1e-5, residual)
    assert torch.equal(residual, summed)
    assert torch.equal(out, rms_norm(summed, weight, 1e-5))


def test_rows_are_independent(assert_rows_independent: Callable[..., None]) -> None:
    x, weight = torch.randn(300, 576), torch.randn(576)

    def with_residual(rows: slice) -> Tensor:
        return rms_norm(x[rows], weight, 1e-5, torch.ones_like(x[rows]))

    assert_rows_independent(with_residual, len(x))
