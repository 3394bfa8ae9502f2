"""silu_mul against its reference, far into both tails."""

from collections.abc import Callable

import pytest
import torch

from kernels.activation import silu_mul, silu_mul_reference


@pytest.mark.parametrize("columns", [1536, 64, 37, 1])
@pytest.mark.parametrize("num_rows", [1, 5, 100])
def test_equals_the_reference(num_rows: int, columns: int) -> None:
    gate_up = 30 * torch.randn(num_rows, 2 * columns)
    torch.testing.assert_close(silu_mul(gate_up), silu_mul_reference(gate_up), rtol=2e-6, atol=1e-30)


def test_extremes() -> None:
    gate = torch.tensor([[-1e4, -100.0, -88.0, -0.0, 0.0, 88.0, 100.0, 1e4]])
    out = silu_mul(torch.cat([gate, torch.ones_like(gate)], dim=1))
    torch.testing.assert_close(out, torch.nn.functional.silu(gate), rtol=1e-6, atol=1e-34)


def test_rows_are_independent(assert_rows_independent: Callable[..., None]) -> None:
    gate_up = torch.randn(100, 2 * 1536)
    assert_rows_independent(lambda rows: silu_mul(gate_up[rows]), len(gate_up))
