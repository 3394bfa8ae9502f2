"""Bursts: counted over any half second, told for a while, and set apart from what chance brings."""

from __future__ import annotations

import math
import random

import pytest

from autoscaling.bursts import BURST_S, KEPT_S, BurstMeter, beyond_chance


def test_the_most_within_half_a_second_wherever_it_begins() -> None:
    meter = BurstMeter()
    times = sorted([0.0, 3.1, 9.0] + [5.3 + 0.04 * index for index in range(12)])  # over the bounds of any fixed bins
    for at_s in times:
        meter.arrived(at_s)
    assert meter.most(9.0) == 12


def test_it_is_what_counting_again_gives() -> None:
    draw, meter, times = random.Random(3), BurstMeter(), []
    now_s = 0.0
    for _ in range(2000):
        now_s += draw.choice([0.001, 0.05, 0.3, 1.0]) * draw.random()
        meter.arrived(now_s)
        times.append(now_s)
        recent = [t for t in times if t >= now_s - KEPT_S]
        counts = [sum(1 for t in times if end - BURST_S < t <= end) for end in recent[-40:]]
        assert meter.most(now_s) >= max(counts)
    every = [sum(1 for t in times if end - BURST_S < t <= end) for end in times if end >= now_s - KEPT_S]
    assert meter.most(now_s) == max(every)


def test_it_is_forgotten() -> None:
    meter = BurstMeter()
    for _ in range(50):
        meter.arrived(1.0)
    meter.arrived(1.0 + KEPT_S / 2)
    assert meter.most(1.0 + KEPT_S) == 50
    assert meter.most(1.1 + KEPT_S) == 1
    assert meter.most(2.0 + 2 * KEPT_S) == 0


@pytest.mark.parametrize("rate_per_s", [0.1, 0.5, 1, 3, 10, 40, 100, 300, 1000])
def test_arrivals_at_random_are_seldom_beyond_chance(rate_per_s: float) -> None:
    mean = rate_per_s * BURST_S
    within = [count for count in range(int(3 * mean) + 20) if not beyond_chance(count, rate_per_s)]
    passed = 1 - sum(math.exp(count * math.log(mean) - mean - math.lgamma(count + 1)) for count in within)
    assert passed < 1e-4
    assert beyond_chance(round(2 * mean) + 20, rate_per_s)
