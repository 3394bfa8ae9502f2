"""SloRouter: which variant and replica a request goes to, in which words, and what happens when none will do."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from cluster.accelerators import Accelerator
from cluster.cost_model import CostModel
from cluster.load import Load
from cluster.model_shape import ModelShape
from cluster.prediction import ReplicaLimits
from cluster.routing import Choice, Refusal, RouteQuery, SloRouter
from cluster.slo import SloLimits
from cluster.variants import Variant

LIMITS = ReplicaLimits(token_budget=128, max_sequences=64, max_waiting=16)
VARIANTS = [
    Variant(name="bf16", quality=1.0),
    Variant(name="int8", method="int8", quality=0.99),
    Variant(name="nf4", method="nf4", quality=0.93),
]
INTERACTIVE = SloLimits(name="interactive", ttft_ms=800, tpot_ms=60, min_quality=0.9, fallback="degrade")
STANDARD = SloLimits(name="standard", ttft_ms=2000, tpot_ms=150, min_quality=0.97, fallback="queue", deadline_s=20)
THROUGHPUT = SloLimits(name="throughput", objective="throughput", min_quality=0.97, deadline_s=600)


def load_of(variant: str, replica_id: str | None = None, **changes: Any) -> Load:
    load = Load(
        replica_id=replica_id or f"{variant}-0",
        variant=variant,
        measured_at_s=0.0,
        kv_tokens_capacity=16384,
        kv_tokens_used=0,
    )
    return replace(load, **changes)


def query(slo: SloLimits, prompt_tokens: int = 40, **changes: Any) -> RouteQuery:
    return replace(RouteQuery(slo=slo, prompt_tokens=prompt_tokens, expected_output_tokens=50), **changes)


@pytest.fixture
def models(smollm: ModelShape, host: Accelerator) -> dict[str, CostModel]:
    return {variant.name: CostModel(smollm, variant, host, share=0.5) for variant in VARIANTS}


@pytest.fixture
def router(models: dict[str, CostModel]) -> SloRouter:
    router = SloRouter(models, LIMITS, rng=random.Random(0))
    for variant in models:
        router.update(load_of(variant), now_s=0.0)
    return router


def chosen(router: SloRouter, asked: RouteQuery, now_s: float = 0.1) -> Choice:
    choice = router.choose(asked, now_s)
    assert isinstance(choice, Choice), choice
    assert choice.reason.isascii()
    assert "\n" not in choice.reason
    return choice


def refused(router: SloRouter, asked: RouteQuery, now_s: float = 0.1) -> Refusal:
    refusal = router.choose(asked, now_s)
    assert isinstance(refusal, Refusal), refusal
    return refusal


def test_the_cheapest_that_meets_the_floor_and_the_limits(router: SloRouter) -> None:
    interactive = chosen(router, query(INTERACTIVE))
    standard = chosen(router, query(STANDARD))
    assert (interactive.variant, standard.variant) == ("nf4", "int8")
    assert interactive.reason.startswith("nf4: cheapest of 3 meeting ttft<=800ms tpot<=60ms quality>=0.90 (nf4 ")
    assert "cpu-s" in interactive.reason
    assert standard.reason.endswith("; nf4 has quality 0.93)")
    assert interactive.predicted_ttft_ms <= 800
    assert interactive.predicted_tpot_ms <= 60
    assert not interactive.degraded


def test_a_variant_predicted_to_miss_a_limit_is_left_out_and_named(router: SloRouter) -> None:
    choice = chosen(router, query(replace(INTERACTIVE, tpot_ms=25, min_quality=0)))
    assert choice.variant != "bf16"
    assert "; bf16 misses tpot 26ms)" in choice.reason


def test_a_variant_that_was_never_measured_meets_no_floor(models: dict[str, CostModel], router: SloRouter) -> None:
    nf4 = models["nf4"]
    router.models = {**models, "nf4": CostModel(nf4.shape, replace(VARIANTS[2], quality=None), nf4.accelerator)}
    choice = chosen(router, query(INTERACTIVE))
    assert choice.variant == "int8"
    assert "nf4 has no measured quality" in choice.reason
    assert chosen(router, query(replace(INTERACTIVE, min_quality=0))).variant == "nf4"


def test_a_busy_replica_that_would_miss_is_passed_over(router: SloRouter) -> None:
    router.update(load_of("nf4", decode_sequences=20, kv_tokens_used=4000), now_s=0.0)
    choice = chosen(router, query(INTERACTIVE))
    assert choice.variant == "int8"
    assert "nf4 misses" in choice.reason


def test_throughput_goes_to_the_fullest_batch_that_has_room(router: SloRouter) -> None:
    router.update(load_of("int8", "int8-1", decode_sequences=3, kv_tokens_used=600), now_s=0.0)
    assert chosen(router, query(THROUGHPUT)).replica_id == "int8-1"
    assert "least cost of 2 meeting quality>=0.97" in chosen(router, query(THROUGHPUT)).reason
    full = load_of("int8", "int8-1", decode_sequences=3, kv_tokens_used=16_300, promised_kv_tokens=150)
    router.update(full, now_s=0.0)
    assert chosen(router, query(THROUGHPUT)).replica_id == "int8-0"


def test_throughput_keeps_its_deadline(router: SloRouter) -> None:
    router.update(load_of("int8", waiting_requests=10, waiting_prefill_tokens=200_000), now_s=0.0)
    choice = chosen(router, query(replace(THROUGHPUT, deadline_s=60)))
    assert choice.variant == "bf16"
    assert "int8 misses deadline" in choice.reason


def test_latency_without_limits_goes_to_the_fastest(router: SloRouter) -> None:
    router.update(load_of("nf4", waiting_prefill_tokens=2000), now_s=0.0)
    choice = chosen(router, query(SloLimits(name="request")))
    assert choice.variant == "int8"
    assert choice.reason.startswith("int8: fastest of 3 meeting no limit")


def test_among_replicas_of_a_variant_the_one_that_answers_first(router: SloRouter) -> None:
    router.update(load_of("int8", "int8-1"), now_s=0.0)
    router.update(load_of("int8", waiting_prefill_tokens=100), now_s=0.0)
    assert chosen(router, query(STANDARD)).replica_id == "int8-1"


def test_ties_are_broken_at_random(router: SloRouter) -> None:
    for index in range(1, 4):
        router.update(load_of("int8", f"int8-{index}"), now_s=0.0)
    picks = Counter(chosen(router, query(STANDARD)).replica_id for _ in range(400))
    assert len(picks) == 4
    assert min(picks.values()) > 60


def test_own_dispatches_count_until_a_load_does(router: SloRouter) -> None:
    router.update(load_of("int8", "int8-1"), now_s=0.0)
    for index in range(8):
        choice = chosen(router, query(STANDARD))
        router.dispatched(choice.replica_id, f"r{index}", 40, 50, now_s=0.1)
    assert {name: len(view.unseen) for name, view in router.replicas.items() if name.startswith("int8")} == {
        "int8-0": 4,
        "int8-1": 4,
    }
    router.update(load_of("int8", decode_sequences=4), now_s=0.12)
    assert len(router.replicas["int8-0"].unseen) == 4, "this load may have left before the requests arrived"
    router.update(load_of("int8", decode_sequences=4), now_s=0.3)
    assert not router.replicas["int8-0"].unseen
    router.finished("r0")
    router.finished("r0")
    router.finished("never seen")


def test_dispatches_of_other_ingresses_are_assumed_alike(models: dict[str, CostModel]) -> None:
    def ttft_ms(num_ingresses: int) -> float:
        router = SloRouter(models, LIMITS, num_ingresses=num_ingresses, rng=random.Random(0))
        router.update(load_of("int8"), now_s=0.0)
        router.dispatched("int8-0", "r", 100, 50, now_s=0.1)
        return chosen(router, query(STANDARD)).predicted_ttft_ms

    assert ttft_ms(4) > 2 * ttft_ms(1) * 0.8


def test_a_promise_made_is_kept_from_those_who_come_later(router: SloRouter) -> None:
    """Fifteen decodes keep 60 ms, a sixteenth would not: a request with a looser limit is put elsewhere."""
    loose = replace(STANDARD, ttft_ms=None, tpot_ms=1000)
    router.update(load_of("int8", decode_sequences=14, kv_tokens_used=1400), now_s=0.0)
    assert chosen(router, query(loose)).variant == "int8"
    router.dispatched("int8-0", "r", 40, 50, now_s=0.0, tpot_ms=60)
    router.update(load_of("int8", decode_sequences=15, kv_tokens_used=1500), now_s=0.1)
    choice = chosen(router, query(loose))
    assert choice.variant == "bf16"
    assert "int8 misses others' tpot" in choice.reason
    router.finished("r")
    assert chosen(router, query(loose)).variant == "int8"


def test_a_measured_ratio_corrects_the_prediction_within_bounds(router: SloRouter) -> None:
    base = chosen(router, query(STANDARD, model_variant="int8")).predicted_tpot_ms
    for ratio, samples, factor in [(2.0, 50, 2.0), (2.0, 2, 1.0), (100.0, 50, 4.0), (0.001, 50, 0.25)]:
        router.update(load_of("int8", step_time_ratio=ratio, step_samples=samples), now_s=0.0)
        choice = chosen(router, query(STANDARD, model_variant="int8"))
        assert choice.predicted_tpot_ms == pytest.approx(factor * base)


def test_stale_loads(router: SloRouter) -> None:
    slow = load_of("int8", step_time_ratio=3.0, step_samples=50)
    router.update(slow, now_s=0.0)
    tpot_ms = chosen(router, query(STANDARD, model_variant="int8"), now_s=1.9).predicted_tpot_ms
    prior_ms = chosen(router, query(STANDARD, model_variant="int8"), now_s=2.1).predicted_tpot_ms
    assert tpot_ms == pytest.approx(3 * prior_ms), "after two periods the profile's prior"
    router.update(load_of("bf16"), now_s=5.5)
    assert chosen(router, query(STANDARD), now_s=6.0).variant == "bf16", "after five periods not eligible"


def test_where_all_are_stale_it_is_random_by_capacity_above_the_floor(router: SloRouter) -> None:
    router.update(load_of("int8", kv_tokens_capacity=3 * 16384), now_s=0.0)
    picks = Counter(chosen(router, query(STANDARD), now_s=60.0).variant for _ in range(400))
    assert set(picks) == {"bf16", "int8"}
    assert 2 < picks["int8"] / picks["bf16"] < 4.5
    assert "stale" in chosen(router, query(STANDARD), now_s=60.0).reason


def test_a_named_variant_bypasses_the_choice(router: SloRouter) -> None:
    choice = chosen(router, query(INTERACTIVE, model_variant="bf16"))
    assert (choice.variant, choice.reason) == ("bf16", "bf16: named by the request")
    router.remove("bf16-0")
    assert refused(router, query(INTERACTIVE, model_variant="bf16")).fallback == "queue"


def test_a_replica_that_refused_is_not_asked_again(router: SloRouter) -> None:
    choice = chosen(router, query(STANDARD, exclude=frozenset({"int8-0"})))
    assert choice.variant == "bf16"


def test_a_full_replica_is_no_candidate(router: SloRouter) -> None:
    for variant in ("bf16", "int8", "nf4"):
        router.update(load_of(variant, decode_sequences=64, waiting_requests=16), now_s=0.0)
    assert refused(router, query(STANDARD)).reason == "no replica can take a request now"
    assert refused(router, query(replace(STANDARD, fallback="reject"))).fallback == "reject"


def overloaded(router: SloRouter) -> None:
    for variant in ("bf16", "int8"):
        router.update(load_of(variant, decode_sequences=60, kv_tokens_used=6000), now_s=0.0)


def test_fallback_degrade_keeps_the_latency_with_less_quality(router: SloRouter) -> None:
    overloaded(router)
    choice = chosen(router, query(replace(STANDARD, fallback="degrade")))
    assert choice.variant == "nf4"
    assert choice.degraded
    assert choice.reason.startswith("nf4: degraded, none meets ttft<=2000ms tpot<=150ms quality>=0.97; bf16 misses")


def test_fallback_degrade_where_no_variant_is_in_time_takes_the_nearest(router: SloRouter) -> None:
    choice = chosen(router, query(replace(INTERACTIVE, tpot_ms=1, ttft_ms=None)))
    assert choice.variant == "nf4"
    assert choice.degraded


def test_fallback_queue_asks_again_where_waiting_helps(router: SloRouter) -> None:
    overloaded(router)
    refusal = refused(router, query(STANDARD))
    assert refusal.fallback == "queue"
    assert 0 < refusal.retry_after_s <= 10
    assert refusal.reason.startswith("queued, none meets")


def test_fallback_queue_serves_at_once_what_no_idle_replica_would_keep(router: SloRouter) -> None:
    choice = chosen(router, query(replace(STANDARD, tpot_ms=1)))
    assert choice.degraded
    assert choice.variant == "int8"
    assert "idle or not" in choice.reason


def test_fallback_reject(router: SloRouter) -> None:
    overloaded(router)
    assert refused(router, query(replace(STANDARD, fallback="reject"))).fallback == "reject"


def test_a_floor_above_all_that_is_configured(models: dict[str, CostModel]) -> None:
    router = SloRouter({name: models[name] for name in ("int8", "nf4")}, LIMITS)
    for variant in ("int8", "nf4"):
        router.update(load_of(variant), now_s=0.0)
    demanding = replace(STANDARD, min_quality=1.0)
    refusal = refused(router, query(demanding))
    assert refusal.fallback == "reject"
    assert "int8 has quality 0.99" in refusal.reason
    degraded = chosen(router, query(replace(demanding, fallback="degrade")))
    assert degraded.variant == "int8"


def test_a_variant_whose_replica_has_yet_to_come_is_waited_for(models: dict[str, CostModel]) -> None:
    router = SloRouter(models, LIMITS)
    router.update(load_of("nf4"), now_s=0.0)
    assert refused(router, query(STANDARD)).fallback == "queue"
    assert SloRouter(models, LIMITS).choose(query(INTERACTIVE), 0.0) == Refusal(
        reason="no replica can take a request now", retry_after_s=1.0, fallback="queue"
    )


def test_a_burst_is_spread_by_counting_ones_own_dispatches(models: dict[str, CostModel]) -> None:
    """200 requests within one period, on loads that never change: no replica gets far more than its part."""
    router = SloRouter(models, LIMITS, rng=random.Random(3))
    for index in range(8):
        router.update(load_of("int8", f"int8-{index}"), now_s=0.0)
    picks: Counter[str] = Counter()
    for index in range(200):
        choice = chosen(router, query(SloLimits(name="request", fallback="degrade")), now_s=0.5)
        router.dispatched(choice.replica_id, f"r{index}", 40, 50, now_s=0.5)
        picks[choice.replica_id] += 1
    assert max(picks.values()) - min(picks.values()) <= 2


def test_the_planners_shares_are_followed_where_the_limits_are_kept(router: SloRouter) -> None:
    router.follow({"interactive": {"bf16": 1.0}}, until_s=10.0)
    choice = chosen(router, query(INTERACTIVE))
    assert choice.variant == "bf16"
    assert choice.reason.startswith("bf16: planned of 3 meeting ")
    assert chosen(router, query(STANDARD)).variant == "int8"


def test_shares_give_way_to_a_limit_and_to_the_floor(router: SloRouter) -> None:
    router.follow({"interactive": {"bf16": 1.0}, "standard": {"nf4": 1.0}}, until_s=10.0)
    router.update(load_of("bf16", decode_sequences=30, kv_tokens_used=6000), now_s=0.0)
    deviating = chosen(router, query(INTERACTIVE))
    assert deviating.variant != "bf16"
    assert "; bf16 misses" in deviating.reason
    assert chosen(router, query(STANDARD)).variant == "int8"


def test_stale_shares_are_ignored(router: SloRouter) -> None:
    router.follow({"interactive": {"bf16": 1.0}}, until_s=3.0)
    assert chosen(router, query(INTERACTIVE), now_s=3.0).variant == "bf16"
    assert chosen(router, query(INTERACTIVE), now_s=3.1).variant == "nf4"


def test_a_class_is_split_as_its_shares_say(router: SloRouter) -> None:
    router.follow({"interactive": {"bf16": 0.75, "nf4": 0.25, "int8": 0.0}}, until_s=10.0)
    counts = Counter(chosen(router, query(INTERACTIVE)).variant for _ in range(400))
    assert set(counts) == {"bf16", "nf4"}
    assert 0.65 < counts["bf16"] / 400 < 0.85


def test_a_planned_variant_without_a_replica_is_no_obstacle(router: SloRouter) -> None:
    router.follow({"interactive": {"bf16": 1.0}}, until_s=10.0)
    router.remove("bf16-0")
    assert chosen(router, query(INTERACTIVE)).variant == "nf4"
