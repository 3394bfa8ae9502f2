"""GPTQ: the paper's update step by hand, and less output error than rounding on a real block's every matrix."""

import pytest
import torch
from torch import Tensor

from batch_jobs.quantize.gptq import GptqSettings, NotPositiveDefiniteError, gptq, inverse_factor
from batch_jobs.quantize.grid import GridSettings, find_grid, round_to_nearest
from batch_jobs.quantize.input_statistics import InputStatistics, output_error

COUPLED = torch.tensor([[2.0, 1.0], [1.0, 2.0]])


def hessian_of(columns: int, seed: int = 0) -> Tensor:
    """Of correlated inputs with some large channels, as layers have them."""
    random = torch.Generator().manual_seed(seed)
    inputs = torch.randn(4 * columns, columns, generator=random) @ torch.randn(columns, columns, generator=random)
    inputs *= torch.rand(columns, generator=random).pow(3) + 0.01
    return inputs.T @ inputs / len(inputs)


def test_the_papers_update_by_hand() -> None:
    """H = [[2, 1], [1, 2]], so H^-1 = [[2, -1], [-1, 2]] / 3, and its upper factor is [[sqrt(2/3), -1/sqrt(6)], ..].

    1.4 rounds to 1, off by 0.4. Equation 2: delta = -0.4 / (2/3) * (-1/3) = +0.2 for the second weight, and
    err U[0, 1] = 0.4 / sqrt(2/3) * (-1/sqrt(6)) = -0.2 is subtracted: 2.4 becomes 2.6 and rounds to 3 instead of 2.
    """
    factor = inverse_factor(COUPLED, 1e-9)
    torch.testing.assert_close(factor, torch.tensor([[(2 / 3) ** 0.5, -(6**-0.5)], [0.0, 0.5**0.5]]))
    weight = torch.tensor([[1.4, 2.4, 0.0, 3.0]])  # the last two are the ends of a 2-bit grid in steps of 1
    hessian = torch.block_diag(COUPLED, torch.eye(2))
    settings = GptqSettings(grid=GridSettings(bits=2), damping=1e-9)
    assert round_to_nearest(weight, settings.grid).dequantize().tolist() == [[1.0, 2.0, 0.0, 3.0]]
    quantized = gptq(weight, hessian, settings).dequantize()
    assert quantized.tolist() == [[1.0, 3.0, 0.0, 3.0]]
    # D H D^T: rounding has 2 * .16 + 2 * .16 + 2 * .16 = .96, the update 2 * .16 + 2 * .36 - 2 * .24 = .56
    assert output_error(quantized - weight, hessian) == pytest.approx(0.56, rel=1e-5)


def test_without_correlation_it_is_rounding_to_nearest() -> None:
    weight = torch.randn(6, 200, generator=torch.Generator().manual_seed(0))
    grid = GridSettings(bits=3)
    quantized = gptq(weight, torch.diag(torch.rand(200) + 0.1), GptqSettings(grid=grid))
    assert torch.equal(quantized.codes, round_to_nearest(weight, grid).codes)


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("group_size", [None, 32])
def test_blocks_and_lazy_updates_are_the_columns_one_by_one(act_order: bool, group_size: int | None) -> None:
    """Against the plain loop over columns that updates everything at once; 320 columns are two blocks and a half."""
    weight = torch.randn(8, 320, generator=torch.Generator().manual_seed(1)).double()
    hessian = hessian_of(320).double()
    settings = GptqSettings(grid=GridSettings(bits=4, group_size=group_size), act_order=act_order)
    quantized = gptq(weight, hessian, settings)
    order = torch.argsort(hessian.diagonal(), descending=True, stable=True) if act_order else torch.arange(320)
    factor = inverse_factor(hessian[order][:, order], 0.01)
    left = weight[:, order].clone()
    for place, column in enumerate(order.tolist()):
        group = int(quantized.group_of[column])
        if group_size and place % group_size == 0:  # the grid is that of the weights as they are updated by now
            grid = find_grid(left[:, place : place + group_size], settings.grid)
            assert torch.equal(quantized.scales[:, group], grid.scales)
        step, zero = quantized.scales[:, group].double(), quantized.zeros[:, group].double()
        code = (left[:, place] / step).round().add(zero).clamp(0, 15)
        assert torch.equal(code, quantized.codes[:, column].double())
        error = (left[:, place] - (code - zero) * step) / factor[place, place]
        left[:, place:] -= error[:, None] * factor[place, place:]


def test_groups_follow_the_order_of_columns_or_stay_neighbours() -> None:
    weight, hessian = torch.randn(4, 128, generator=torch.Generator().manual_seed(2)), hessian_of(128)
    grid = GridSettings(bits=4, group_size=32)
    order = torch.argsort(hessian.diagonal(), descending=True, stable=True)
    dynamic = gptq(weight, hessian, GptqSettings(grid=grid, act_order=True))
    assert torch.equal(dynamic.group_of[order].long(), torch.arange(128) // 32)
    static = gptq(weight, hessian, GptqSettings(grid=grid, act_order=True, static_groups=True))
    assert torch.equal(static.group_of.long(), torch.arange(128) // 32)
    assert torch.equal(static.scales, round_to_nearest(weight, grid).scales)


def test_less_error_than_rounding_on_every_matrix_of_a_real_block(
    first_block: dict[str, tuple[Tensor, InputStatistics]],
) -> None:
    for name, (weight, statistics) in first_block.items():
        for settings in (
            GptqSettings(grid=GridSettings(bits=4)),
            GptqSettings(grid=GridSettings(bits=3, group_size=64, symmetric=True), act_order=True),
        ):
            if settings.act_order and name == "mlp.down_proj":
                continue  # 1536 columns: half of this test's time
            some = weight[:32]
            rounded = round_to_nearest(some, settings.grid).dequantize()
            quantized = gptq(some, statistics.hessian, settings).dequantize()
            error, rtn_error = (output_error(made - some, statistics.hessian) for made in (quantized, rounded))
            assert error < rtn_error, name


def test_inputs_that_are_always_zero_change_nothing() -> None:
    weight, hessian = torch.randn(4, 64, generator=torch.Generator().manual_seed(3)), hessian_of(64)
    dead = torch.tensor([3, 40])
    hessian[dead], hessian[:, dead] = 0.0, 0.0
    weight[:, dead] = 100.0  # would make the grid useless
    quantized = gptq(weight, hessian, GptqSettings(grid=GridSettings(bits=4))).dequantize()
    assert quantized[:, dead].count_nonzero() == 0
    assert output_error(quantized - weight, hessian) < 0.05 * output_error(weight, hessian)


def test_more_damping_is_asked_for_where_the_hessian_has_no_factor() -> None:
    hessian = torch.ones(16, 16) - 0.5 * torch.eye(16)
    with pytest.raises(NotPositiveDefiniteError, match="damping of"):
        gptq(torch.randn(2, 16), hessian, GptqSettings(grid=GridSettings(bits=4)))
