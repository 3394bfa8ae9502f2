"""Arrivals: classes by share and seed, times by rate; and made-up traffic."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from statistics import fmean, pstdev

import pytest

from autoscaling.simulator.arrivals import TracedRequest, arrivals, parse_shares
from autoscaling.simulator.generated import generate
from cluster.errors import UserError

CLASSES = ("interactive", "standard", "throughput")
SHARES = {"interactive": 0.6, "standard": 0.3, "throughput": 0.1}


def test_classes_by_share_the_same_for_the_same_seed() -> None:
    requests = [TracedRequest(float(index), 10, 20) for index in range(5000)]
    found = list(arrivals(requests, SHARES, seed=3, rate=20.0))
    assert found == list(arrivals(requests, SHARES, seed=3, rate=20.0))
    assert found != list(arrivals(requests, SHARES, seed=4, rate=20.0))
    counts = Counter(arrival.slo_class for arrival in found)
    assert {name: count / 5000 for name, count in counts.items()} == pytest.approx(SHARES, abs=0.03)
    assert found[100].at_s == 5.0


def test_shares() -> None:
    assert parse_shares("interactive=.6,standard=.3,throughput=.1", CLASSES) == SHARES
    for text, words in [
        ("interactiv=1", "did you mean interactive"),
        ("standard=much", "'standard=much' is no share"),
        ("standard=2", "not between 0 and 1"),
        ("standard=.5", "sum to 0.5"),
    ]:
        with pytest.raises(UserError, match=words):
            parse_shares(text, CLASSES)


def gaps_of(spec: str) -> list[float]:
    times_s = [request.at_s for request in generate(spec, seed=1)]
    return [later - earlier for earlier, later in pairwise(times_s)]


def test_poisson_and_bursts() -> None:
    poisson, bursts = gaps_of("poisson:rate=20,duration_s=1000"), gaps_of("gamma:rate=20,cv=4,duration_s=4000")
    assert 1 / fmean(poisson) == pytest.approx(20, rel=0.05)
    assert pstdev(poisson) / fmean(poisson) == pytest.approx(1, rel=0.05)
    assert 1 / fmean(bursts) == pytest.approx(20, rel=0.15)
    assert pstdev(bursts) / fmean(bursts) == pytest.approx(4, rel=0.15)


def test_a_daily_wave() -> None:
    times_s = [request.at_s for request in generate("diurnal:peak=5,trough=1,period_s=1000,duration_s=10000", seed=1)]
    at_peak = sum(400 <= at_s % 1000 < 600 for at_s in times_s) / 2000
    at_trough = sum(at_s % 1000 < 100 or at_s % 1000 >= 900 for at_s in times_s) / 2000
    assert at_peak == pytest.approx(4.87, rel=0.06)
    assert at_trough == pytest.approx(1.13, rel=0.12)
    assert times_s == sorted(times_s)


def test_lengths_have_their_means_and_spread() -> None:
    requests = list(generate("poisson:rate=50,duration_s=1000,prompt=700,output=90,output_cv=0", seed=2))
    prompts = [request.prompt_tokens for request in requests]
    assert fmean(prompts) == pytest.approx(700, rel=0.05)
    assert pstdev(prompts) / fmean(prompts) == pytest.approx(1, rel=0.1)
    assert {request.output_tokens for request in requests} == {90}
    assert requests == list(generate("poisson:rate=50,duration_s=1000,prompt=700,output=90,output_cv=0", seed=2))


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("poison:rate=2", "no traffic 'poison'; did you mean poisson"),
        ("poisson:rat=2", "no key 'rat'; did you mean rate"),
        ("poisson:rate=fast", "'rate=fast' is no number"),
        ("poisson:rate=-1", "'rate=-1' is not above 0"),
        ("diurnal:peak=1,trough=2", "trough 2 is above peak 1; swap them"),
        ("poisson:rate=1e9", "too many"),
        ("poisson:rate=0.001,duration_s=1", "gives no request"),
    ],
)
def test_a_wrong_specification(spec: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        generate(spec, seed=0)
