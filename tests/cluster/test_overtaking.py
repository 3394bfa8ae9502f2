"""What throughput requests at a replica are to a latency request: decodes in its batch, and nothing to wait for."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from cluster.accelerators import Accelerator
from cluster.cost_model import CostModel
from cluster.load import Load
from cluster.model_shape import ModelShape
from cluster.routing import Choice, Refusal, RouteQuery, SloRouter
from cluster.slo import SloLimits
from tests.cluster.test_routing import INTERACTIVE, LIMITS, STANDARD, THROUGHPUT, VARIANTS, load_of

LOOSE = replace(STANDARD, tpot_ms=None)


@pytest.fixture
def router(smollm: ModelShape, host: Accelerator) -> SloRouter:
    models = {variant.name: CostModel(smollm, variant, host) for variant in VARIANTS if variant.name == "int8"}
    return SloRouter(models, LIMITS, rng=random.Random(0))


def answer(router: SloRouter, slo: SloLimits, now_s: float = 0.1) -> Choice | Refusal:
    return router.choose(RouteQuery(slo=slo, prompt_tokens=40, expected_output_tokens=50), now_s)


def ttft_ms(router: SloRouter, slo: SloLimits, now_s: float = 0.1) -> float:
    choice = answer(router, slo, now_s)
    assert isinstance(choice, Choice), choice
    return choice.predicted_ttft_ms


def with_batch(**changes: int) -> Load:
    """Ten thousand prompt tokens wait in the queue."""
    load = load_of("int8", waiting_requests=14, waiting_prefill_tokens=10_000, promised_kv_tokens=12_000)
    part = replace(load, throughput_waiting=14, throughput_prefill_tokens=10_000, throughput_promised_tokens=12_000)
    return replace(part, **changes)


def test_an_interactive_request_is_not_behind_the_prompts_of_throughput(router: SloRouter) -> None:
    router.update(load_of("int8"), 0.0)
    alone_ms = ttft_ms(router, INTERACTIVE)
    router.update(with_batch(), 0.0)
    assert ttft_ms(router, INTERACTIVE) == pytest.approx(alone_ms)
    assert ttft_ms(router, THROUGHPUT) > 20 * alone_ms


def test_prompts_of_its_own_kind_are_before_it(router: SloRouter) -> None:
    router.update(with_batch(throughput_prefill_tokens=0), 0.0)
    assert isinstance(answer(router, STANDARD), Refusal)


def test_places_and_blocks_of_throughput_are_taken(router: SloRouter) -> None:
    """Sixty-four decodes and a full cache: another of throughput waits for one to end, a latency request does not."""
    full = load_of("int8", decode_sequences=64, kv_tokens_used=16_384)
    router.update(full, 0.0)
    waits_ms = ttft_ms(router, replace(LOOSE, ttft_ms=None))
    router.update(replace(full, throughput_sequences=64, throughput_kv_tokens=16_384), 0.0)
    assert ttft_ms(router, replace(LOOSE, ttft_ms=None)) < 0.8 * waits_ms
    assert ttft_ms(router, replace(THROUGHPUT, deadline_s=None)) == pytest.approx(waits_ms, rel=0.01)


def test_its_decodes_are_in_the_batch_that_it_joins(router: SloRouter) -> None:
    router.update(load_of("int8", decode_sequences=20, kv_tokens_used=2000), 0.0)
    among_others = answer(router, LOOSE)
    batch = load_of("int8", decode_sequences=20, kv_tokens_used=2000, throughput_sequences=20)
    router.update(replace(batch, throughput_kv_tokens=2000), 0.0)
    among_batch = answer(router, LOOSE)
    assert isinstance(among_others, Choice)
    assert isinstance(among_batch, Choice)
    assert among_batch.predicted_tpot_ms == pytest.approx(among_others.predicted_tpot_ms)


def test_own_dispatches_of_throughput_are_overtaken_too(router: SloRouter) -> None:
    router.update(load_of("int8"), 0.0)
    alone_ms = ttft_ms(router, INTERACTIVE)
    for number in range(10):
        router.dispatched("int8-0", f"r{number}", 400, 100, 0.1, objective="throughput")
    assert ttft_ms(router, INTERACTIVE) == pytest.approx(alone_ms)
    router.update(load_of("int8"), 1.0)
    for number in range(10):
        router.finished(f"r{number}")
    assert ttft_ms(router, THROUGHPUT, 1.0) == pytest.approx(ttft_ms(router, replace(LOOSE, min_quality=0), 1.0))


def test_throughput_finds_a_replica_full_where_others_still_come_in(router: SloRouter) -> None:
    most = LIMITS.max_sequences + LIMITS.max_waiting // 2
    router.update(load_of("int8", waiting_requests=most, throughput_waiting=most), 0.0)
    refusal = answer(router, THROUGHPUT)
    assert isinstance(refusal, Refusal)
    assert refusal.reason == "no replica can take a request now"
    assert isinstance(answer(router, INTERACTIVE), Choice)
