"""Rank and the waiting room: what an SLO class makes of a request's place in an engine."""

from __future__ import annotations

import pytest

from cluster.rank import UNHURRIED_S, deadline_s, rank
from cluster.slo import SloLimits
from cluster.waiting_room import most_requests, most_waiting_tokens


@pytest.mark.parametrize(
    ("limits", "left_s"),
    [
        ({"ttft_ms": 500, "deadline_s": 20}, 0.1),
        ({"tpot_ms": 50, "deadline_s": 20}, 19.6),
        ({"objective": "throughput", "deadline_s": 600}, 599.6),
        ({"ttft_ms": 100}, -0.3),
        ({}, None),
    ],
)
def test_what_is_left_of_the_time_to_the_first_token(limits: dict[str, float], left_s: float | None) -> None:
    found = deadline_s(SloLimits(name="any", **limits), waited_s=0.4)
    assert found == (None if left_s is None else pytest.approx(left_s))


def test_a_request_that_waited_elsewhere_is_due_as_if_it_had_waited_here() -> None:
    slo = SloLimits(name="interactive", ttft_ms=500)
    here = rank(priority=0, objective="latency", deadline_s=deadline_s(slo, 0.0), arrived_s=10.0, number=0)
    elsewhere = rank(priority=0, objective="latency", deadline_s=deadline_s(slo, 3.0), arrived_s=13.0, number=1)
    assert here < elsewhere
    assert here[:-1] == elsewhere[:-1]


def test_without_a_deadline_it_is_due_some_time() -> None:
    assert rank(priority=0, objective="latency", deadline_s=None, arrived_s=5.0, number=3) == (
        False,
        0,
        False,
        5.0 + UNHURRIED_S,
        3,
    )


def test_throughput_leaves_room_in_the_waiting_room() -> None:
    assert most_requests("latency", max_sequences=64, max_waiting=256) == 320
    assert most_requests("throughput", max_sequences=64, max_waiting=256) == 192
    assert most_requests("throughput", max_sequences=8, max_waiting=0) == 8
    assert most_waiting_tokens("throughput", 1000) < most_waiting_tokens("latency", 1000)
