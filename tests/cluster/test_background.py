"""Where background work goes, and that a router's online requests do not see it."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from cluster.accelerators import Accelerator
from cluster.config import FleetConfig
from cluster.cost_model import CostModel
from cluster.errors import UserError
from cluster.model_shape import ModelShape
from cluster.rank import rank
from cluster.routing import Choice, Refusal, SloRouter
from cluster.slo import BACKGROUND, SloClasses, SloLimits, background_step_s
from tests.cluster.test_routing import INTERACTIVE, LIMITS, STANDARD, VARIANTS, load_of, query


@pytest.fixture
def router(smollm: ModelShape, host: Accelerator) -> SloRouter:
    models = {variant.name: CostModel(smollm, variant, host, share=0.5) for variant in VARIANTS}
    router = SloRouter(models, LIMITS, rng=random.Random(0))
    for variant in models:
        router.update(load_of(variant), now_s=0.0)
    return router


def test_the_replica_with_the_least_to_do(router: SloRouter) -> None:
    router.update(load_of("bf16", decode_sequences=3), 0.0)
    router.update(load_of("int8", background_sequences=2), 0.0)
    for expected in ("nf4-0", "nf4-0", None):  # with two dispatched it has as many as int8
        choice = router.choose(query(BACKGROUND), 0.1)
        assert isinstance(choice, Choice)
        assert expected is None or choice.replica_id == expected
        router.dispatched(choice.replica_id, str(len(router._replica_of)), 40, 50, 0.1, objective="background")


def test_within_its_room_and_its_quality(router: SloRouter) -> None:
    full = load_of("bf16", background_sequences=64, background_waiting=64)
    router.update(full, 0.0)
    named = router.choose(query(BACKGROUND, model_variant="bf16"), 0.1)
    assert isinstance(named, Refusal)
    assert (named.fallback, named.reason) == ("reject", "no room for background work at bf16")
    assert isinstance(router.choose(query(INTERACTIVE, model_variant="bf16"), 0.1), Choice), "the others have theirs"
    good = router.choose(query(replace(BACKGROUND, min_quality=0.97)), 0.1)
    assert isinstance(good, Choice)
    assert good.variant == "int8"
    router.remove("nf4-0")
    gone = router.choose(query(BACKGROUND, model_variant="nf4"), 0.1)
    assert isinstance(gone, Refusal)
    assert gone.reason == "no replica of nf4 runs; background wakes none"


@pytest.mark.parametrize("slo", [INTERACTIVE, STANDARD])
def test_online_requests_do_not_see_it(router: SloRouter, slo: SloLimits) -> None:
    before = router.choose(query(slo), 0.1)
    for variant in ("bf16", "int8", "nf4"):
        router.update(load_of(variant, background_sequences=60, background_waiting=30, background_kv_tokens=9000), 0.1)
        for number in range(20):
            router.dispatched(f"{variant}-0", f"{variant}{number}", 100, 100, 0.1, objective="background")
    after = router.choose(query(slo), 0.2)
    assert isinstance(before, Choice)
    assert isinstance(after, Choice)
    assert (after.variant, after.predicted_ttft_ms) == (before.variant, pytest.approx(before.predicted_ttft_ms))
    assert after.predicted_tpot_ms == pytest.approx(before.predicted_tpot_ms)


def test_it_ranks_after_everything_whatever_its_priority() -> None:
    first = rank(priority=-100, objective="background", deadline_s=-50.0, arrived_s=0.0, number=0)
    last = rank(priority=100, objective="throughput", deadline_s=None, arrived_s=9e9, number=1)
    assert last < first


CLASSES = SloClasses(classes={"standard": replace(STANDARD)}, default="standard")


def test_a_class_by_name_and_an_objective() -> None:
    assert CLASSES.resolve("background") is BACKGROUND
    assert CLASSES.resolve({"objective": "background"}) == replace(BACKGROUND, name="request", min_quality=0.97)
    mine = replace(BACKGROUND, min_quality=0.9)
    assert SloClasses(classes={**CLASSES.classes, "background": mine}, default="standard").resolve("background") is mine
    with pytest.raises(UserError, match="background is promised no latency"):
        CLASSES.resolve({"objective": "background", "tpot_ms": 50})


def test_the_longest_step_is_a_part_of_the_tightest_ttft() -> None:
    assert background_step_s([INTERACTIVE, STANDARD, BACKGROUND]) == pytest.approx(0.1 * 0.8)
    assert background_step_s([SloLimits(name="patient")]) is None


def test_no_fleet_is_sized_for_its_class() -> None:
    fleet = {
        "model": {"source": "embedded:smollm2-135m"},
        "slo_classes": {"online": {"ttft_ms": 500}, "night": {"objective": "background", "min_quality": 0.9}},
        "default_class": "online",
    }
    config = FleetConfig.of(fleet)
    assert config.slo.resolve("night").is_background
    assert list(config.online_classes) == ["online"]
    with pytest.raises(UserError, match="default_class: 'night' is of a background objective"):
        FleetConfig.of(fleet | {"default_class": "night"})
    with pytest.raises(UserError, match="promised no latency"):
        FleetConfig.of(fleet | {"slo_classes": {"night": {"objective": "background", "ttft_ms": 5}}})
