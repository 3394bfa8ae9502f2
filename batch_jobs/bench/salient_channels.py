"""AWQ's own experiments: which 1 % of the channels matter, and what scaling them does; it searches no scales.

Lin et al. 2023 (arXiv:2306.00978), tables 1 and 2: int3 rounded to nearest in groups; 1 % of each matrix' channels kept
in 16 bits, chosen by activations, by weights or at random; or the same 1 % multiplied by s before rounding and divided
after. The paper's OPT-6.7B: 23.54 at s = 1, 12.87, 12.48, 11.92 at s = 2, 12.36 at s = 4.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from batch_jobs.bench.reference_model import ReferenceModel
from batch_jobs.quantize.awq import keep_channels, salient_channels, scale_channels
from batch_jobs.quantize.grid import GridSettings, round_to_nearest

SALIENT_SHARE = 0.01
FACTORS = (1.0, 1.25, 1.5, 2.0, 4.0)
SEED = 0
NUM_SAMPLES = 32
"""16,384 tokens: means of |x| need fewer than the second moments that a search rests on."""

Rounded = Callable[[str, Tensor], Tensor]
"""A linear's name and its weight [N, K] -> the weight as it is after rounding."""


def compare(
    model: ReferenceModel,
    token_ids: list[int],
    samples: Sequence[Sequence[int]],
    context: int,
    grid: GridSettings,
    progress: Callable[[], None],
) -> dict[str, float]:
    """Perplexity by what was done with the salient channels; samples: token ids that tell which those are."""
    magnitudes = model.input_magnitudes(samples[:NUM_SAMPLES])
    scores: dict[str, float] = {}
    for name, rounded in _treatments(magnitudes, grid):
        weights = {linear: rounded(linear, weight) for linear, weight in model.weights().items()}
        with model.with_weights(weights):
            scores[name] = model.perplexity(token_ids, context)
        progress()
    return scores


def num_treatments() -> int:
    return 4 + len(FACTORS)


def _treatments(magnitudes: dict[str, Tensor], grid: GridSettings) -> Iterator[tuple[str, Rounded]]:
    generator = torch.Generator().manual_seed(SEED)

    def by_activation(name: str) -> Tensor:
        return salient_channels(magnitudes[name], SALIENT_SHARE)

    def keep(chosen: Callable[[str, Tensor], Tensor]) -> Rounded:
        return lambda name, weight: keep_channels(weight, chosen(name, weight), grid)

    def scale(factor: float) -> Rounded:
        return lambda name, weight: scale_channels(weight, by_activation(name), factor, grid)

    yield "rounded to nearest", lambda _, weight: round_to_nearest(weight, grid).dequantize()
    yield "1 % kept, by activation", keep(lambda name, _: by_activation(name))
    yield "1 % kept, by weight", keep(lambda _, weight: salient_channels(weight.abs().mean(dim=0), SALIENT_SHARE))
    yield (
        "1 % kept, at random",
        keep(lambda _, weight: salient_channels(torch.rand(weight.shape[1], generator=generator), SALIENT_SHARE)),
    )
    for factor in FACTORS:
        yield f"1 % by activation times {factor:g}", scale(factor)
