"""StepTable: the step times of many replicas at once are CostModel's own."""

from __future__ import annotations

import random

import pytest

from cluster.accelerators import Accelerator
from cluster.cost_model import CostModel
from cluster.model_shape import ModelShape
from cluster.profile import Profile, ProfileKey, ProfilePoint, StepShape
from cluster.step_table import StepTable
from cluster.variants import Variant


def random_shapes(count: int, seed: int) -> list[StepShape]:
    rng = random.Random(seed)
    return [
        StepShape(
            decode_sequences=decodes,
            kv_tokens=decodes * rng.randrange(1, 4000),
            prefill_tokens=rng.choice([0, 1, rng.randrange(4096)]),
            prefill_context_tokens=rng.choice([0, rng.randrange(8000)]),
        )
        for decodes in (rng.randrange(0, 256) for _ in range(count))
    ]


def profiled(model: CostModel) -> CostModel:
    points = tuple(
        ProfilePoint(shape=shape, step_s=model.step_s(shape) * (1.1 + 0.1 * (index % 5)))
        for index, shape in enumerate(random_shapes(40, seed=9))
    )
    key = ProfileKey(model="m", variant=model.variant.name, accelerator="H100-80G", threads=1, versions={})
    profile = Profile(key=key, points=points, measured_at="2026-01-01")
    return CostModel(model.shape, model.variant, model.accelerator, profile=profile)


@pytest.mark.parametrize("with_profiles", [0, 1, 3])
def test_the_cost_models_own_times(llama_8b: ModelShape, h100: Accelerator, with_profiles: int) -> None:
    variants = [Variant(name="bf16"), Variant(name="fp8", method="fp8"), Variant(name="nf4", method="nf4")]
    plain = [CostModel(llama_8b, variant, h100, share=0.5) for variant in variants]
    by_variant = [profiled(model) if index < with_profiles else model for index, model in enumerate(plain)]
    models = [by_variant[index % 3] for index in range(30)]
    table = StepTable(models)
    for seed in range(4):
        for place, shape in enumerate(random_shapes(30, seed)):
            assert table.step_s(place, shape) == pytest.approx(models[place].step_s(shape), rel=1e-9)
