"""StepTimes: many decode steps in closed form are the sum of the steps."""

from __future__ import annotations

import random

import pytest

from autoscaling.simulator.step_times import StepTimes
from autoscaling.sustained import ReplicaCapability
from cluster.profile import StepShape
from tests.autoscaling.simulator.conftest import profiled


@pytest.mark.parametrize("batch", [1, 7, 200])
@pytest.mark.parametrize("kv_tokens", [200, 5000, 123_456])
def test_the_series_is_the_sum_of_its_steps(bf16: ReplicaCapability, batch: int, kv_tokens: int) -> None:
    times = StepTimes(profiled(bf16.model))
    one_by_one = 0.0
    for steps in range(1, 300):
        one_by_one += times.decodes_s(batch, kv_tokens + (steps - 1) * batch, 1)
        assert times.decodes_s(batch, kv_tokens, steps) == pytest.approx(one_by_one, rel=1e-12)


def test_by_the_roofline_a_step_takes_what_the_cost_model_says(bf16: ReplicaCapability) -> None:
    times, rng = StepTimes(bf16.model), random.Random(0)
    for _ in range(200):
        batch = rng.randrange(1, 257)
        kv_tokens = batch * rng.randrange(1, 4000)
        expected = bf16.model.step_s(StepShape(decode_sequences=batch, kv_tokens=kv_tokens))
        assert times.decodes_s(batch, kv_tokens, 1) == pytest.approx(expected, rel=1e-9)


def test_by_a_profile_it_is_near(bf16: ReplicaCapability) -> None:
    model, rng = profiled(bf16.model), random.Random(0)
    times = StepTimes(model)
    errors = []
    for _ in range(200):
        batch = rng.randrange(1, 257)
        kv_tokens = batch * rng.randrange(16, 4000)
        expected = model.step_s(StepShape(decode_sequences=batch, kv_tokens=kv_tokens))
        errors.append(abs(times.decodes_s(batch, kv_tokens, 1) / expected - 1))
    assert sorted(errors)[100] < 2e-4
    assert max(errors) < 0.01


def test_the_fewest_steps_that_last_so_long(bf16: ReplicaCapability) -> None:
    times, rng = StepTimes(bf16.model), random.Random(1)
    for _ in range(300):
        batch, kv_tokens, most = rng.randrange(1, 200), rng.randrange(200, 90_000), rng.randrange(1, 400)
        duration_s = rng.random() * times.decodes_s(batch, kv_tokens, most) * 1.1
        steps, lasted_s = times.steps_lasting(batch, kv_tokens, duration_s, most)
        assert lasted_s == pytest.approx(times.decodes_s(batch, kv_tokens, steps), rel=1e-12)
        assert 1 <= steps <= most
        assert steps == most or times.decodes_s(batch, kv_tokens, steps) >= duration_s
        assert steps == 1 or times.decodes_s(batch, kv_tokens, steps - 1) < duration_s
