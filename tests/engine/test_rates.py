"""Rates that forget and the smoothed ratio, on a clock of the test's own."""

from __future__ import annotations

import pytest

from engine.rates import DecayingRate, SmoothedRatio


def test_a_steady_rate_is_right_from_the_first_second_on() -> None:
    rate = DecayingRate(window_s=5)
    assert rate.per_second(0.0) == 0.0
    for tenth in range(601):
        rate.record(10, tenth / 10)
        if tenth >= 10:
            assert rate.per_second(tenth / 10) == pytest.approx(100, rel=0.12)
    assert rate.per_second(60.0) == pytest.approx(100, rel=0.02)


def test_a_rate_falls_while_nothing_comes() -> None:
    rate = DecayingRate(window_s=5)
    for second in range(30):
        rate.record(100, second)
    assert rate.per_second(34) == pytest.approx(rate.per_second(29) / 2.718, rel=0.05)
    assert rate.per_second(100) < 0.01


def test_a_ratio_is_a_mean_first_and_follows_later() -> None:
    ratio = SmoothedRatio(weight=0.1)
    assert (ratio.value, ratio.num_samples) == (1.0, 0)
    ratio.record(2.0, 1.0)
    ratio.record(4.0, 1.0)
    assert ratio.value == pytest.approx(3.0)
    for _ in range(60):
        ratio.record(0.5, 1.0)
    assert ratio.value == pytest.approx(0.5, abs=0.02)
    assert ratio.num_samples == 62
