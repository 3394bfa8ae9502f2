"""SloRouter with prefixes: a request goes where its prefix is, and never at the cost of a limit or of the floor."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.accelerators import Accelerator
from cluster.cost_model import CostModel
from cluster.model_shape import ModelShape
from cluster.prefix_hash import prefix_hashes
from cluster.routing import Choice, RouteQuery, SloRouter
from cluster.slo import SloLimits
from tests.cluster.test_routing import LIMITS, STANDARD, THROUGHPUT, VARIANTS, load_of

REPLICAS = 4
PREFIX = prefix_hashes(range(320))


@pytest.fixture(scope="module")
def models(smollm: ModelShape, host: Accelerator) -> dict[str, CostModel]:
    return {variant.name: CostModel(smollm, variant, host) for variant in VARIANTS}


def router_of(models: dict[str, CostModel], variants: tuple[str, ...] = ("int8",)) -> SloRouter:
    router = SloRouter(models, LIMITS, rng=random.Random(0))
    for name in variants:
        for index in range(REPLICAS):
            router.update(load_of(name, f"{name}-{index}"), now_s=0.0)
    return router


def query(slo: SloLimits, prefix: tuple[int, ...] = PREFIX, **changes: object) -> RouteQuery:
    return replace(RouteQuery(slo=slo, prompt_tokens=340, expected_output_tokens=50, prefix=prefix), **changes)


def chosen(router: SloRouter, asked: RouteQuery) -> Choice:
    choice = router.choose(asked, 0.1)
    assert isinstance(choice, Choice), choice
    return choice


def sent(router: SloRouter, replica_id: str, prefix: tuple[int, ...], request_id: str = "r") -> None:
    router.dispatched(replica_id, request_id, 340, 50, 0.1, prefix=prefix)


@pytest.mark.parametrize("slo", [STANDARD, THROUGHPUT, SloLimits(name="request")], ids=lambda slo: slo.name)
def test_a_request_goes_where_its_prefix_is(models: dict[str, CostModel], slo: SloLimits) -> None:
    router = router_of(models)
    sent(router, "int8-2", PREFIX)
    router.finished("r")
    choices = [chosen(router, query(slo)) for _ in range(20)]
    assert {choice.replica_id for choice in choices} == {"int8-2"}
    assert choices[0].reason.endswith("; 320 of 340 prompt tokens were there before")
    assert len({chosen(router, query(slo, prefix=())).replica_id for _ in range(40)}) > 1


def test_the_longest_prefix_wins_and_of_equal_ones_the_sooner_answer(models: dict[str, CostModel]) -> None:
    router = router_of(models)
    sent(router, "int8-0", PREFIX[:2], "r0")
    sent(router, "int8-1", PREFIX[:4], "r1")
    sent(router, "int8-3", PREFIX[:4], "r3")
    assert chosen(router, query(STANDARD)).replica_id in ("int8-1", "int8-3")
    router.finished("r3")
    assert chosen(router, query(STANDARD)).replica_id == "int8-3"


def test_a_named_variant_keeps_its_conversation_too(models: dict[str, CostModel]) -> None:
    router = router_of(models, ("bf16", "int8"))
    sent(router, "bf16-1", PREFIX)
    router.finished("r")
    choice = chosen(router, query(STANDARD, model_variant="bf16"))
    assert choice.replica_id == "bf16-1"
    assert choice.reason.startswith("bf16: named by the request; 320 of 340")


def test_a_replica_that_went_or_came_back_empty_is_not_preferred(models: dict[str, CostModel]) -> None:
    router = router_of(models)
    loaded = load_of("int8", "int8-2", measured_at_s=1.0, prompt_tokens=900)
    router.update(loaded, 0.1)
    sent(router, "int8-2", PREFIX)
    router.finished("r")
    router.update(replace(loaded, measured_at_s=0.9, prompt_tokens=850), 0.1)
    assert chosen(router, query(STANDARD)).replica_id == "int8-2", "a Load that was overtaken is no restart"
    router.update(replace(loaded, measured_at_s=2.0, prompt_tokens=0), 0.1)
    assert "were there before" not in chosen(router, query(STANDARD)).reason
    sent(router, "int8-2", PREFIX)
    router.remove("int8-2")
    router.update(load_of("int8", "int8-2"), 0.1)
    assert "were there before" not in chosen(router, query(STANDARD)).reason


def test_a_conversation_sticks_while_the_load_allows_and_spreads_when_it_does_not(
    models: dict[str, CostModel],
) -> None:
    """One prefix, and nothing ends: three prompts of 650 ms are in time, the fourth would not be."""
    router = router_of(models)
    places = []
    for number in range(3 * REPLICAS):
        places.append(chosen(router, query(STANDARD)).replica_id)
        sent(router, places[-1], PREFIX, f"r{number}")
    assert [len(set(places[start : start + 3])) for start in range(0, len(places), 3)] == [1] * REPLICAS
    assert len(set(places)) == REPLICAS


def test_without_a_limit_a_prefix_is_not_worth_a_long_wait(models: dict[str, CostModel]) -> None:
    router = router_of(models)
    sent(router, "int8-2", PREFIX)
    router.update(load_of("int8", "int8-2", waiting_prefill_tokens=20_000), 1.0)
    assert chosen(router, query(SloLimits(name="request"))).replica_id != "int8-2"


loads = st.fixed_dictionaries(
    {
        "decode_sequences": st.integers(0, 64),
        "waiting_requests": st.integers(0, 20),
        "waiting_prefill_tokens": st.integers(0, 20_000),
        "kv_tokens_used": st.integers(0, 16_384),
        "throughput_sequences": st.integers(0, 8),
        "throughput_waiting": st.integers(0, 8),
    }
)
limits = st.builds(
    SloLimits,
    name=st.just("any"),
    ttft_ms=st.none() | st.floats(50, 5000),
    tpot_ms=st.none() | st.floats(15, 200),
    objective=st.sampled_from(["latency", "throughput"]),
    min_quality=st.sampled_from([0.0, 0.95, 0.98, 1.0]),
    fallback=st.sampled_from(["queue", "reject", "degrade"]),
    deadline_s=st.none() | st.floats(1, 100),
)


@settings(max_examples=120, deadline=None)
@given(
    states=st.lists(loads, min_size=9, max_size=9),
    slo=limits,
    sent_to=st.lists(st.tuples(st.integers(0, 8), st.integers(1, 5)), max_size=12),
    length=st.integers(0, 5),
)
def test_affinity_breaks_no_limit_that_another_replica_keeps_and_no_floor(
    models: dict[str, CostModel],
    states: list[dict[str, int]],
    slo: SloLimits,
    sent_to: list[tuple[int, int]],
    length: int,
) -> None:
    """With and without the prefix the same limits are kept: what is degraded, queued or refused stays so."""
    router = SloRouter(models, LIMITS, rng=random.Random(0))
    names = [f"{variant.name}-{index}" for variant in VARIANTS for index in range(3)]
    for name, state in zip(names, states, strict=True):
        router.update(load_of(name.split("-")[0], name, **state), 0.0)
    for number, (place, depth) in enumerate(sent_to):
        sent(router, names[place], PREFIX[:depth], f"r{number}")
    found = router.choose(query(slo, prefix=PREFIX[:length]), 0.1)
    without = router.choose(query(slo, prefix=()), 0.1)
    assert type(found) is type(without)
    if not isinstance(found, Choice) or not isinstance(without, Choice):
        return
    assert found.degraded == without.degraded
    if found.degraded:
        return
    quality = models[found.variant].variant.quality
    assert quality is not None
    assert quality >= slo.min_quality
    assert slo.ttft_ms is None or found.predicted_ttft_ms <= slo.ttft_ms
    assert slo.tpot_ms is None or found.predicted_tpot_ms <= slo.tpot_ms
