"""--variant auto: the cheapest variant for the rows that is good enough, and the arithmetic that says so."""

from __future__ import annotations

from dataclasses import replace

import pytest

from batch_jobs.batch_tuner import LengthSample, choose_batch
from batch_jobs.engine_choice import EngineChoice
from batch_jobs.variant_choice import check_quality, choose_variant
from cluster.accelerators import accelerator_named
from cluster.cost_model import CostModel
from cluster.engine_spec import EngineSpec
from cluster.errors import UserError
from cluster.model_shape import ModelShape
from cluster.variants import Variant
from engine.checkpoint import ensure_checkpoint

VARIANTS = (
    Variant(name="bf16", quality=1.0),
    Variant(name="fp8", method="fp8", quality=0.995),
    Variant(name="nf4", method="nf4", quality=0.93),
    Variant(name="int8", method="int8"),
)


@pytest.fixture(scope="module")
def engines() -> list[EngineChoice]:
    """Of the 8B shape on an H100."""
    card = accelerator_named("H100-80G")
    checkpoint = ensure_checkpoint("embedded:smollm2-135m")
    shape = ModelShape.from_hf_config(checkpoint / "config.json", 2048)
    shape = replace(shape, layers=32, hidden=4096, ffn=14336, heads=32, kv_heads=8, head_dim=128)
    return [
        EngineChoice(
            spec=EngineSpec(
                replica_id=variant.name,
                checkpoint=str(checkpoint),
                variant=variant,
                kv_capacity_tokens=300_000,
                max_context=2048,
                accelerator=card,
            ),
            cost_model=CostModel(shape, variant, card),
        )
        for variant in VARIANTS
    ]


def sample(prompt_tokens: float) -> LengthSample:
    return LengthSample(
        num_rows=100,
        mean_prompt_tokens=prompt_tokens,
        max_prompt_tokens=600,
        mean_row_bytes=100.0,
        is_whole_input=False,
    )


def seconds_a_row(engine: EngineChoice, prompt_tokens: int, output_tokens: int, num_rows: int) -> float:
    choice = choose_batch(engine, sample(prompt_tokens), output_tokens, num_rows)
    return output_tokens * choice.step_s / choice.batch + engine.cost_model.prefill_s(prompt_tokens)


@pytest.mark.parametrize(("num_rows", "prompt_tokens", "output_tokens"), [(1, 20, 400), (10**6, 1000, 60)])
def test_the_least_seconds_of_those_good_enough(
    engines: list[EngineChoice], num_rows: int, prompt_tokens: int, output_tokens: int
) -> None:
    choice = choose_variant(engines, sample(prompt_tokens), output_tokens, num_rows, min_quality=0.9)
    costs = {
        each.spec.variant.name: seconds_a_row(each, prompt_tokens, output_tokens, num_rows) for each in engines[:3]
    }
    assert choice.engine.spec.variant.name == min(costs, key=costs.__getitem__)
    assert choice.arithmetic is not None
    assert all(f"{name} {cost:.3g} = " in choice.arithmetic for name, cost in costs.items())
    assert "left out: int8 has no measured quality" in choice.arithmetic


@pytest.mark.parametrize(("min_quality", "name"), [(0.9, "fp8"), (0.996, "bf16")])
def test_only_of_that_quality(engines: list[EngineChoice], min_quality: float, name: str) -> None:
    choice = choose_variant(engines, sample(1000), 60, 10**6, min_quality=min_quality)
    assert choice.engine.spec.variant.name == name


def test_without_one_that_is_good_enough_it_says_what_there_is(engines: list[EngineChoice]) -> None:
    with pytest.raises(UserError, match=r"--min-quality 0.99: no variant has it \(nf4 has 0.93, int8 has no measured"):
        choose_variant(engines[2:], sample(20), 64, 100, min_quality=0.99)
    with pytest.raises(UserError, match=r"--min-quality 0.99: nf4 has 0.93; name another, or --variant auto"):
        check_quality(engines[2], 0.99)
