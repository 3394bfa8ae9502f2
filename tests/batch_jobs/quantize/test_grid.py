"""Affine grids: hand-worked codes, the nearest value, scales as stored, zeros that GPTQ's format can hold."""

import pytest
import torch

from batch_jobs.quantize.grid import GridSettings, find_grid, round_to_nearest


def test_a_row_by_hand() -> None:
    """[-1, 2] in 2 bits: steps of 1, zero at code 1."""
    weight = round_to_nearest(torch.tensor([[-1.0, 0.4, 0.6, 2.0]]), GridSettings(bits=2))
    assert weight.scales.tolist() == [[1.0]]
    assert weight.zeros.tolist() == [[1]]
    assert weight.codes.tolist() == [[0, 1, 2, 3]]
    assert weight.dequantize().tolist() == [[-1.0, 0.0, 1.0, 2.0]]


def test_a_symmetric_row_by_hand() -> None:
    """absmax 1.5 in 2 bits: steps of 2 * 1.5 / 3 = 1, zero at code 2, so 1.5 is clipped to 1."""
    weight = round_to_nearest(torch.tensor([[-1.5, -0.9, 0.2, 1.5]]), GridSettings(bits=2, symmetric=True))
    assert weight.zeros.tolist() == [[2]]
    assert weight.dequantize().tolist() == [[-2.0, -1.0, 0.0, 1.0]]


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("group_size", [32, None])
def test_each_code_is_the_nearest_value_that_is_stored(bits: int, symmetric: bool, group_size: int | None) -> None:
    weights = torch.randn(5, 96, generator=torch.Generator().manual_seed(bits))
    settings = GridSettings(bits=bits, symmetric=symmetric, group_size=group_size)
    weight = round_to_nearest(weights, settings)
    assert weight.scales.dtype == torch.float16
    assert int(weight.codes.max()) <= 2**bits - 1
    group_of = weight.group_of.long()
    scales, zeros = weight.scales.float()[:, group_of], weight.zeros.float()[:, group_of]
    every_value = (torch.arange(2**bits) - zeros[..., None]) * scales[..., None]
    least = (every_value - weights[..., None]).abs().amin(dim=-1)
    torch.testing.assert_close((weight.dequantize() - weights).abs(), least, atol=1e-6, rtol=0)


def test_asymmetric_values_stay_within_half_a_step_of_the_range() -> None:
    weights = torch.rand(4, 64, generator=torch.Generator().manual_seed(0)) - 0.3
    weight = round_to_nearest(weights, GridSettings(bits=4))
    error = (weight.dequantize() - weights).abs()
    assert bool((error <= 1.001 * weight.scales.float()).all())  # the zero is rounded too: half a step and half a step
    assert float(error.mean()) < float(weight.scales.float().mean()) / 3


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_a_zero_of_nothing_is_avoided_where_the_format_cannot_hold_it(bits: int) -> None:
    positive = torch.rand(3, 32, generator=torch.Generator().manual_seed(1)) + 0.1
    assert int(round_to_nearest(positive, GridSettings(bits=bits)).zeros.max()) == 0
    weight = round_to_nearest(positive, GridSettings(bits=bits, lowest_zero=1))
    assert int(weight.zeros.min()) == 1
    largest = weight.dequantize().amax(dim=1)
    torch.testing.assert_close(largest, positive.amax(dim=1), rtol=2e-3, atol=0)


def test_all_zeros_dequantise_to_zeros() -> None:
    for symmetric in (False, True):
        weight = round_to_nearest(torch.zeros(2, 8), GridSettings(bits=4, symmetric=symmetric))
        assert weight.dequantize().count_nonzero() == 0


def test_a_kept_range_clips() -> None:
    grid = find_grid(torch.tensor([[-2.0, 1.0]]), GridSettings(bits=4), 0.5)
    assert float(grid.scales) == pytest.approx(1.5 / 15, rel=1e-3)


def test_groups_divide_the_row() -> None:
    with pytest.raises(ValueError, match="groups of 64 do not divide rows of 96"):
        round_to_nearest(torch.zeros(1, 96), GridSettings(bits=4, group_size=64))
