"""The two halves of a trace: nothing is lost between them, and the first sees nothing of the second."""

from __future__ import annotations

import pytest

from autoscaling.simulator.arrivals import Arrival
from autoscaling.simulator.runs import Traffic
from autoscaling.tuning.halves import halves
from cluster.errors import UserError


def traffic(times_s: list[float]) -> Traffic:
    """Prompts as long as the request's place in the trace, to know them by."""
    requests = [Arrival(at_s, place + 1, 7, "standard") for place, at_s in enumerate(times_s)]
    return Traffic(name="made up", arrivals=lambda: requests, rate=2.0, warm_up_s=0.0, seed=5)


def places(arrivals: list[Arrival]) -> list[int]:
    return [each.prompt_tokens - 1 for each in arrivals]


def test_each_request_counts_once_at_its_time() -> None:
    times_s = [0.0, 1.0, 2.5, 4.9, 5.0, 6.0, 9.0, 10.0]
    first, second = halves(traffic(times_s), 0.0)
    assert [each.at_s for each in first.traffic.arrivals()] == [0.0, 1.0, 2.5, 4.9]
    assert [each.at_s for each in second.traffic.arrivals()] == [0.0, 1.0, 4.0, 5.0]
    assert (first.num_requests, second.num_requests) == (4, 4)
    assert first.duration_s == second.duration_s == 5.0
    assert list(first.traffic.arrivals()) == list(first.traffic.arrivals()), "the same each time"
    assert (second.traffic.rate, second.traffic.seed) == (2.0, 5)


@pytest.mark.parametrize("warm_up_s", [2.0, 4.0, 13.0])
def test_a_warm_up_comes_before_each_half(warm_up_s: float) -> None:
    first, second = halves(traffic([float(second) for second in range(11)]), warm_up_s)
    for half, counted in ((first, range(5)), (second, range(5, 11))):
        assert half.traffic.warm_up_s == warm_up_s
        arrivals = list(half.traffic.arrivals())
        assert [each.at_s for each in arrivals] == sorted(each.at_s for each in arrivals)
        assert arrivals[0].at_s >= 0
        assert places([each for each in arrivals if each.at_s >= warm_up_s]) == list(counted)
    assert max(places(list(first.traffic.arrivals()))) < 5, "the search sees nothing of the second half"


def test_before_the_second_half_comes_what_really_came() -> None:
    _, second = halves(traffic([float(second) for second in range(11)]), 3.0)
    assert places(list(second.traffic.arrivals()))[:4] == [2, 3, 4, 5]


def test_a_trace_too_short_for_two_halves() -> None:
    with pytest.raises(UserError, match="made up has 1 requests, too few for two halves; give a longer trace"):
        halves(traffic([0.0]), 0.0)
