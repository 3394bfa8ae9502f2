"""SLO classes: what a request may ask for, and attainment over offered requests."""

from __future__ import annotations

from typing import Any

import pytest

from cluster.errors import UserError
from cluster.slo import Attainment, Outcome, SloClasses, SloLimits, meets_floor

CLASSES = SloClasses(
    classes={
        "interactive": SloLimits(name="interactive", ttft_ms=500, tpot_ms=60, min_quality=0.9, fallback="degrade"),
        "standard": SloLimits(name="standard", ttft_ms=2000, tpot_ms=150, min_quality=0.97, deadline_s=20),
    },
    default="standard",
)


def test_by_name_and_by_default() -> None:
    assert CLASSES.resolve("interactive").tpot_ms == 60
    assert CLASSES.resolve(None).name == "standard"


def test_limits_of_its_own_keep_the_operators_floor_and_fallback() -> None:
    limits = CLASSES.resolve({"tpot_ms": 30, "objective": "throughput"})
    assert limits == SloLimits(
        name="request", tpot_ms=30, objective="throughput", min_quality=0.97, fallback="queue", deadline_s=20
    )
    assert CLASSES.resolve({"min_quality": 0}).min_quality == 0


@pytest.mark.parametrize(
    ("wish", "words"),
    [
        ("fast", "slo: no class 'fast'; known: background, interactive, standard"),
        ("interactiv", "slo: no class 'interactiv'; did you mean interactive?"),
        (5, "slo: 5 is neither a class name nor an object"),
        ({"ttft": 5}, "slo.ttft: not a limit; did you mean ttft_ms?"),
        ({"deadline_s": 5}, "slo.deadline_s: not a limit"),
        ({"ttft_ms": -5}, "slo.ttft_ms: -5 is not > 0; give milliseconds"),
        ({"tpot_ms": "5"}, "slo.tpot_ms: '5' is not a number"),
        ({"tpot_ms": True}, "slo.tpot_ms: True is not a number"),
        ({"tpot_ms": float("nan")}, "slo.tpot_ms: nan is not a number"),
        ({"tpot_ms": float("inf")}, "slo.tpot_ms: inf is not > 0"),
        ({"min_quality": 1.5}, "slo.min_quality: 1.5 is not between 0 and 1"),
        ({"objective": "speed"}, "slo.objective: 'speed' is none of latency, throughput, background"),
        ({"objective": ["latency"]}, "slo.objective: "),
    ],
)
def test_a_bad_wish_is_refused_by_key(wish: Any, words: str) -> None:
    with pytest.raises(UserError) as error:
        CLASSES.resolve(wish)
    assert str(error.value).startswith(words)


@pytest.mark.parametrize(
    ("quality", "floor", "met"), [(None, 0.0, True), (None, 0.01, False), (0.97, 0.97, True), (0.969, 0.97, False)]
)
def test_a_variant_not_measured_meets_no_floor(quality: float | None, floor: float, met: bool) -> None:
    assert meets_floor(quality, floor) is met


def test_attainment_counts_offered_requests() -> None:
    limits = CLASSES.resolve("interactive")
    attainment = Attainment()
    outcomes = [
        Outcome(ttft_ms=400, tpot_ms=50, quality=0.95),
        Outcome(ttft_ms=400, tpot_ms=None, quality=1.0),
        Outcome(ttft_ms=600, tpot_ms=50, quality=0.95),
        Outcome(ttft_ms=400, tpot_ms=61, quality=0.95),
        Outcome(ttft_ms=400, tpot_ms=50, quality=0.8),
    ]
    for outcome in outcomes:
        attainment.offered(limits)
        attainment.served(limits, outcome)
    for _ in range(3):
        attainment.offered(limits)
    tally = attainment.by_class["interactive"]
    assert (tally.offered, tally.met) == (8, 2)
    assert tally.attainment == 0.25
