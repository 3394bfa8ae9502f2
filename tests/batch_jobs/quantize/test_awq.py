"""AWQ: scales and clipping found for the output's error, which is what a forward pass over the inputs would give."""

import pytest
import torch
from torch import Tensor

from batch_jobs.quantize.awq import (
    channel_scales,
    keep_channels,
    rounded_when_scaled,
    salient_channels,
    scale_channels,
    search_clipping,
    search_scales,
)
from batch_jobs.quantize.grid import GridSettings, round_to_nearest
from batch_jobs.quantize.input_statistics import InputStatistics, InputSums, output_error, pooled

INT3 = GridSettings(bits=3, group_size=64)


def inputs_with_salient_channels(tokens: int = 512, columns: int = 128) -> Tensor:
    random = torch.Generator().manual_seed(0)
    inputs = torch.randn(tokens, columns, generator=random)
    inputs[:, [5, 77]] *= 30.0
    return inputs


def test_the_error_is_that_of_the_outputs() -> None:
    inputs = inputs_with_salient_channels()
    weight = torch.randn(16, 128, generator=torch.Generator().manual_seed(1))
    sums = InputSums(128, inputs.device)
    for part in inputs.split(100):
        sums.add(part.view(1, -1, 128))
    statistics = sums.mean()
    torch.testing.assert_close(statistics.magnitude, inputs.abs().mean(dim=0))
    difference = rounded_when_scaled(weight, channel_scales(statistics.magnitude, 0.5), INT3) - weight
    expected = (inputs @ difference.T).square().sum(dim=1).mean()
    assert output_error(difference, statistics.hessian) == pytest.approx(float(expected), rel=1e-4)


def test_shares_pool_to_the_statistics_of_all() -> None:
    inputs = inputs_with_salient_channels(300)
    whole, *parts = (InputSums(128, inputs.device) for _ in range(4))
    whole.add(inputs)
    for part, rows in zip(parts, inputs.split(100), strict=True):
        part.add(rows)
    together, expected = pooled([part.mean() for part in parts]), whole.mean()
    assert together.num_tokens == 300
    torch.testing.assert_close(together.hessian, expected.hessian)
    torch.testing.assert_close(together.magnitude, expected.magnitude)


def test_scales_are_the_best_of_the_papers_grid(first_block: dict[str, tuple[Tensor, InputStatistics]]) -> None:
    names = ("self_attn.k_proj", "self_attn.v_proj")
    weights, statistics = [first_block[name][0][:64] for name in names], first_block[names[0]][1]
    found = search_scales(weights, statistics.hessian, statistics.magnitude, INT3)
    errors = {}
    for alpha in (0.0, 0.25, 0.5, 0.75, found.alpha):
        scales = channel_scales(statistics.magnitude, alpha)
        made = [rounded_when_scaled(weight, scales, INT3) for weight in weights]
        errors[alpha] = sum(output_error(q - w, statistics.hessian) for q, w in zip(made, weights, strict=True))
    assert found.error == errors[found.alpha] == min(errors.values())
    assert found.rtn_error == errors[0.0]
    assert 0 < found.alpha < 1
    assert found.error < 0.95 * found.rtn_error
    torch.testing.assert_close(found.scales, channel_scales(statistics.magnitude, found.alpha))


def test_clipping_never_adds_to_a_groups_own_error(first_block: dict[str, tuple[Tensor, InputStatistics]]) -> None:
    weight, statistics = first_block["mlp.up_proj"]
    weight = weight[:64]
    kept = search_clipping(weight, statistics.hessian, INT3)
    assert kept.shape == (64, 9)
    assert bool((kept < 1).any())
    clipped, plain = (round_to_nearest(weight, INT3, share).dequantize() - weight for share in (kept, 1.0))
    for group in range(9):
        columns = slice(64 * group, 64 * group + 64)
        block = statistics.hessian[columns, columns]
        by_row = [((part[:, columns] @ block) * part[:, columns]).sum(dim=1) for part in (clipped, plain)]
        assert bool((by_row[0] <= by_row[1] * 1.0001).all())


def test_salient_channels_by_activation_recover_what_others_do_not() -> None:
    inputs = inputs_with_salient_channels()
    hessian, magnitude = inputs.T @ inputs / len(inputs), inputs.abs().mean(dim=0)
    weight = torch.randn(64, 128, generator=torch.Generator().manual_seed(2))
    salient = salient_channels(magnitude, 0.015)
    assert salient.nonzero().flatten().tolist() == [5, 77]
    kept = keep_channels(weight, salient, INT3)
    assert torch.equal(kept[:, salient], weight[:, salient])
    rounded = round_to_nearest(weight, INT3).dequantize()
    assert torch.equal(kept[:, ~salient], rounded[:, ~salient])

    def error(made: Tensor) -> float:
        return output_error(made - weight, hessian)

    by_weight = keep_channels(weight, salient_channels(weight.abs().mean(dim=0), 0.015), INT3)
    assert error(kept) < 0.2 * error(rounded) < error(by_weight)
    # the paper's table 2: scaling helps, until the other channels of the group pay more than the salient ones gain
    errors = [error(scale_channels(weight, salient, factor, INT3)) for factor in (1.0, 2.0, 64.0)]
    assert errors[0] == pytest.approx(error(rounded), rel=1e-5)
    assert errors[1] < 0.9 * errors[0]
    assert errors[1] < errors[2]


def test_at_least_one_channel_is_salient() -> None:
    assert salient_channels(torch.tensor([1.0, 3.0, 2.0]), 0.01).tolist() == [False, True, False]
