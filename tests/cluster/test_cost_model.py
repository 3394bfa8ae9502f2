"""The cost model against figures worked out elsewhere, and the properties any of its predictions must have."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.accelerators import Accelerator, accelerator_named
from cluster.cost_model import CostModel, decodes
from cluster.model_config import shape_of
from cluster.model_shape import ModelShape
from cluster.profile import Profile, ProfileKey, ProfilePoint, StepShape
from cluster.variants import Method, Variant

METHODS: tuple[Method, ...] = ("none", "int8", "nf4", "fp8", "gptq")


def model_of(shape: ModelShape, method: Method, accelerator: Accelerator, share: float = 1.0) -> CostModel:
    return CostModel(shape, Variant(name=method, method=method), accelerator, share=share)


@pytest.mark.parametrize(("method", "ridge"), [("none", 295), ("gptq", 94), ("fp8", 316)])
def test_ridge_batches_of_llama_8b_on_an_h100(
    llama_8b: ModelShape, h100: Accelerator, method: Method, ridge: int
) -> None:
    assert round(model_of(llama_8b, method, h100).ridge_batch()) == ridge


def test_phases_add_up_rather_than_hide_behind_each_other(llama_8b: ModelShape, h100: Accelerator) -> None:
    model = model_of(llama_8b, "gptq", h100)
    step = model.explain(decodes(256, 512))
    assert (step.linear_s + step.attention_s) * 1e3 == pytest.approx(9.0, abs=0.05)
    one_roof_s = (model.weights_read_bytes + 256 * 512 * model.kv_bytes_per_token) / model.bandwidth
    assert one_roof_s * 1e3 == pytest.approx(6.6, abs=0.1)
    assert model.step_s(decodes(256, 512)) == pytest.approx(step.total_s)


def test_a_prefill_chunk_lengthens_the_step_of_the_decodes_beside_it(llama_8b: ModelShape, h100: Accelerator) -> None:
    model = model_of(llama_8b, "none", h100)
    alone = model.step_s(decodes(64, 512))
    beside = model.step_s(StepShape(decode_sequences=64, kv_tokens=64 * 512, prefill_tokens=512))
    assert (beside - alone) * 1e3 == pytest.approx(5, abs=1)
    on_a100 = model_of(llama_8b, "none", accelerator_named("A100-80G"))
    assert on_a100.prefill_s(512) > 2.5 * model.prefill_s(512)


def test_what_bounds_a_step(llama_8b: ModelShape, h100: Accelerator) -> None:
    model = model_of(llama_8b, "none", h100)
    assert model.explain(decodes(1, 128)).bound == "memory"
    assert model.explain(StepShape(decode_sequences=0, kv_tokens=0, prefill_tokens=2048)).bound == "arithmetic"


@settings(deadline=None, max_examples=50)
@given(
    method=st.sampled_from(METHODS),
    batch=st.integers(1, 300),
    context=st.integers(1, 8000),
    prefill=st.integers(0, 2048),
    more=st.integers(1, 500),
)
def test_more_work_never_takes_less_time(method: Method, batch: int, context: int, prefill: int, more: int) -> None:
    model = model_of(shape_of("embedded:smollm2-135m"), method, accelerator_named("L4"))

    def step_s(batch: int, context: int, prefill: int) -> float:
        return model.step_s(StepShape(decode_sequences=batch, kv_tokens=batch * context, prefill_tokens=prefill))

    base = step_s(batch, context, prefill)
    assert step_s(batch + more, context, prefill) >= base
    assert step_s(batch, context + more, prefill) >= base
    assert step_s(batch, context, prefill + more) >= base


@settings(deadline=None, max_examples=50)
@given(share=st.floats(0.05, 1.0), batch=st.integers(1, 64))
def test_half_the_share_takes_twice_as_long_but_for_t0(share: float, batch: int) -> None:
    shape, l4 = shape_of("embedded:smollm2-135m"), accelerator_named("L4")
    whole = model_of(shape, "none", l4).explain(decodes(batch, 100))
    part = model_of(shape, "none", l4, share).explain(decodes(batch, 100))
    assert part.linear_s == pytest.approx(whole.linear_s / share)
    assert part.attention_s == pytest.approx(whole.attention_s / share)
    assert part.t0_s == whole.t0_s


@settings(deadline=None, max_examples=50)
@given(capacity=st.integers(16, 200_000), context=st.integers(1, 4096), tpot_ms=st.none() | st.floats(1, 500))
def test_the_best_batch_fits_keeps_tpot_and_is_the_smallest_near_the_best(
    capacity: int, context: int, tpot_ms: float | None
) -> None:
    model = model_of(shape_of("embedded:smollm2-135m"), "int8", accelerator_named("L4"))
    tpot_s = None if tpot_ms is None else tpot_ms / 1e3
    best = model.best_batch(context, kv_capacity_tokens=capacity, tpot_s=tpot_s, max_sequences=64)
    held = -(-context // 16) * 16
    assert best.batch == 1 or best.batch * held <= capacity
    assert best.batch == 1 or tpot_s is None or best.step_s <= tpot_s
    rates = {batch: batch / model.decode_step_s(batch, context) for batch in range(1, 65)}
    feasible = [
        rate
        for batch, rate in rates.items()
        if batch == 1 or (batch * held <= capacity and (tpot_s is None or batch / rate <= tpot_s))
    ]
    assert best.tokens_per_s >= 0.95 * max(feasible)
    assert all(rates[batch] < 0.95 * max(feasible) for batch in range(1, best.batch))


def test_the_best_batch_says_what_limits_it(smollm: ModelShape, host: Accelerator, llama_8b: ModelShape) -> None:
    slow, fast = model_of(smollm, "none", host), model_of(llama_8b, "none", accelerator_named("H200"))
    assert slow.best_batch(256, kv_capacity_tokens=100_000, max_sequences=64).limit == "arithmetic"
    assert fast.best_batch(4096, kv_capacity_tokens=8192).limit == "KV capacity"
    tight = fast.best_batch(512, kv_capacity_tokens=10**6, tpot_s=0.0075)
    assert tight.limit == "TPOT"
    assert tight.step_s <= 0.0075
    assert "sequences" in tight.arithmetic


def test_cost_is_price_times_time_over_tokens(llama_8b: ModelShape, h100: Accelerator) -> None:
    model = model_of(llama_8b, "none", h100)
    seconds = model.decode_step_s(32, 512)
    assert model.cost_per_million_tokens(32, 512) == pytest.approx(2.69 / 3600 * seconds / 32 * 1e6)


def test_a_profile_takes_the_place_of_the_data_sheet(smollm: ModelShape, host: Accelerator) -> None:
    """A machine three times slower than its data sheet in all, with a t0 of 4 ms."""
    ideal = model_of(smollm, "int8", host)
    shapes = [decodes(batch, context) for batch in (1, 2, 4, 8, 16, 32) for context in (64, 512)]
    shapes += [StepShape(decode_sequences=4, kv_tokens=1024, prefill_tokens=n) for n in (32, 64, 128)]
    points = tuple(
        ProfilePoint(shape=shape, step_s=0.004 + 3 * (ideal.explain(shape).total_s - ideal.explain(shape).t0_s))
        for shape in shapes
    )
    key = ProfileKey(model="m", variant="int8", accelerator="cpu-2", threads=1, versions={})
    profile = Profile(key=key, points=points, measured_at="2026-01-01T00:00:00")
    fitted = CostModel(smollm, Variant(name="int8", method="int8"), host, profile=profile)
    for point in points:
        assert fitted.step_s(point.shape) == pytest.approx(point.step_s, rel=0.01)
    unseen = decodes(12, 200)
    expected = 0.004 + 3 * (ideal.explain(unseen).total_s - ideal.explain(unseen).t0_s)
    assert fitted.step_s(unseen) == pytest.approx(expected, rel=0.1)
    assert fitted.explain(unseen).total_s == pytest.approx(fitted.step_s(unseen))
