"""Predictions of TTFT, TPOT and cost: against steps counted by hand, and how they move with the backlog."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.accelerators import Accelerator, accelerator_named
from cluster.cost_model import CostModel
from cluster.model_config import shape_of
from cluster.model_shape import ModelShape
from cluster.prediction import Backlog, Prediction, ReplicaLimits, predict
from cluster.profile import StepShape
from cluster.variants import Variant

LIMITS = ReplicaLimits(token_budget=128, max_sequences=32, max_waiting=64)
IDLE = Backlog(kv_capacity_tokens=16384)
BUSY = replace(IDLE, kv_used_tokens=2000, decoding=8, kv_promised_tokens=1000)


def model_of(shape: ModelShape, accelerator: Accelerator) -> CostModel:
    return CostModel(shape, Variant(name="int8", method="int8"), accelerator, share=0.5)


@cache
def model_on_a_host() -> CostModel:
    cpu = replace(accelerator_named("L4"), kind="cpu", bandwidth_bytes_per_s=22e9, flops={"bf16": 86e9, "int8": 150e9})
    return model_of(shape_of("embedded:smollm2-135m"), cpu)


def predicted(backlog: Backlog, prompt_tokens: int = 64, output_tokens: float = 50) -> Prediction:
    return predict(model_on_a_host(), LIMITS, backlog, prompt_tokens=prompt_tokens, output_tokens=output_tokens)


def test_alone_it_waits_for_its_own_prompt_and_has_its_steps_to_itself(smollm: ModelShape, host: Accelerator) -> None:
    model = model_of(smollm, host)
    prediction = predict(model, LIMITS, IDLE, prompt_tokens=64, output_tokens=50)
    assert prediction.ttft_s == pytest.approx(model.prefill_s(64))
    assert prediction.tpot_s == pytest.approx(model.step_s(StepShape(decode_sequences=1, kv_tokens=89)))
    assert prediction.cost_s == pytest.approx(0.5 * (prediction.ttft_s + 50 * prediction.tpot_s))
    assert prediction.wait_s == 0


def test_prompts_ahead_are_computed_first_in_steps_shared_with_the_decodes(
    smollm: ModelShape, host: Accelerator
) -> None:
    model = model_of(smollm, host)
    backlog = replace(BUSY, prefill_tokens=200)
    prediction = predict(model, LIMITS, backlog, prompt_tokens=64, output_tokens=50)

    def step_s(prefill: int) -> float:
        return model.step_s(StepShape(decode_sequences=8, kv_tokens=2000, prefill_tokens=prefill))

    # 264 prompt tokens in steps of 128 - 8 decodes: two full, one of 24; and half the step in which it came.
    assert prediction.ttft_s == pytest.approx(step_s(0) / 2 + 2 * step_s(120) + step_s(24))


def test_a_prompt_longer_than_a_step_reads_its_own_context() -> None:
    assert predicted(IDLE, prompt_tokens=1024).ttft_s > 8 * predicted(IDLE, prompt_tokens=128).ttft_s


def test_it_waits_for_cache_that_is_promised_and_for_a_slot() -> None:
    crowded = replace(BUSY, kv_used_tokens=16_000, kv_promised_tokens=300)
    roomy = replace(crowded, kv_promised_tokens=100)
    assert predicted(crowded).wait_s > 0
    assert predicted(crowded).ttft_s == pytest.approx(predicted(roomy).ttft_s + predicted(crowded).wait_s)
    assert predicted(replace(BUSY, kv_promised_tokens=10**6)).wait_s == 0, "eight requests of 50 tokens need 400"
    assert predicted(replace(BUSY, decoding=32)).wait_s > 0
    assert predicted(replace(BUSY, decoding=31)).wait_s == 0


def test_arriving_prompts_slow_the_decodes() -> None:
    assert predicted(replace(BUSY, prefill_tokens_per_s=100)).tpot_s > predicted(BUSY).tpot_s


def test_a_slower_machine_than_the_model_says_is_slower_in_all() -> None:
    slow = predicted(replace(BUSY, step_time_ratio=2))
    assert slow.ttft_s == pytest.approx(2 * predicted(BUSY).ttft_s)
    assert slow.tpot_s == pytest.approx(2 * predicted(BUSY).tpot_s)
    assert slow.cost_s == pytest.approx(2 * predicted(BUSY).cost_s)


def test_a_token_in_a_batch_costs_less_than_alone() -> None:
    assert predicted(BUSY, prompt_tokens=1).cost_s < predicted(IDLE, prompt_tokens=1).cost_s


@settings(deadline=None)
@given(
    decoding=st.integers(0, 32),
    waiting=st.integers(0, 20),
    used=st.integers(0, 10_000),
    prefill=st.integers(0, 5000),
    prompt=st.integers(1, 4000),
    more=st.integers(1, 500),
)
def test_more_before_it_is_never_sooner(
    decoding: int, waiting: int, used: int, prefill: int, prompt: int, more: int
) -> None:
    backlog = Backlog(
        kv_capacity_tokens=16384, decoding=decoding, waiting=waiting, kv_used_tokens=used, prefill_tokens=prefill
    )
    base = predicted(backlog, prompt_tokens=prompt)
    assert predicted(replace(backlog, prefill_tokens=prefill + more), prompt_tokens=prompt).ttft_s >= base.ttft_s
    assert predicted(backlog, prompt_tokens=prompt + more).ttft_s >= base.ttft_s
    assert predicted(replace(backlog, waiting=waiting + more), prompt_tokens=prompt).tpot_s >= base.tpot_s
    assert base.cost_s > 0
