"""Demand: counted at arrival, smoothed, with trend, peak and silence."""

from __future__ import annotations

from dataclasses import replace

import pytest

from autoscaling.demand import PRIOR_OUTPUT_TOKENS, DemandForecast, DemandSettings
from autoscaling.scaling import ClassTraffic

SETTINGS = DemandSettings(noise=0.0)


def traffic(rate: float, *, window_s: float = 10.0, refused: int = 0, finished: int = 0) -> ClassTraffic:
    arrivals = round(rate * window_s)
    return ClassTraffic(
        slo_class="standard",
        arrivals=arrivals,
        window_s=window_s,
        prompt_tokens=1000 * arrivals,
        output_tokens=200 * finished,
        finished=finished,
        refused=refused,
    )


def after(rates: list[float], settings: DemandSettings = SETTINGS) -> DemandForecast:
    forecast = DemandForecast(settings)
    for index, rate in enumerate(rates):
        forecast.observe([traffic(rate)], 10.0 * (index + 1))
    return forecast


def rate_of(forecast: DemandForecast, horizon_s: float = 0.0) -> float:
    found = forecast.expected(horizon_s)
    return found[0].rate_per_s if found else 0.0


def test_a_steady_rate_is_itself_now_and_later() -> None:
    forecast = after([5.0] * 30)
    assert rate_of(forecast) == pytest.approx(5.0)
    assert rate_of(forecast, 60) == pytest.approx(5.0)


def test_a_rise_is_carried_on_and_a_fall_is_not() -> None:
    rising = after([1.0 + 0.5 * index for index in range(30)])
    assert rate_of(rising, 60) > rate_of(rising) + 1.5
    falling = after([20.0 - 0.5 * index for index in range(30)])
    assert rate_of(falling, 60) == rate_of(falling)


def test_a_step_is_followed_within_a_minute() -> None:
    assert rate_of(after([1.0] * 30 + [10.0] * 6)) > 8.0


def test_chance_is_allowed_for() -> None:
    assert rate_of(after([5.0] * 30, DemandSettings(noise=2.0))) == pytest.approx(5.0 + 2 * (5.0 / 30.0) ** 0.5)


def test_the_peak_is_held_and_then_let_go() -> None:
    assert after([10.0] * 10 + [1.0] * 6).held()[0].rate_per_s == pytest.approx(10.0)
    assert after([10.0] * 10 + [1.0] * 40).held()[0].rate_per_s < 1.2


def test_refused_requests_are_demand() -> None:
    forecast = DemandForecast(SETTINGS)
    forecast.observe([traffic(5.0, refused=50)], 10.0)
    assert rate_of(forecast) == pytest.approx(5.0)


def test_silence_ends_it() -> None:
    assert rate_of(after([5.0] * 10 + [0.0] * 29)) > 0
    assert after([5.0] * 10 + [0.0] * 31).expected(60) == ()
    assert after([5.0] * 10 + [0.0] * 31).held() == ()


def test_lengths_are_means_and_outputs_begin_with_a_prior() -> None:
    forecast = after([5.0] * 3)
    (found,) = forecast.expected(0)
    assert (found.prompt_tokens, found.output_tokens) == (1000.0, PRIOR_OUTPUT_TOKENS)
    forecast.observe([traffic(5.0, finished=1)], 35.0)
    assert forecast.expected(0)[0].output_tokens < PRIOR_OUTPUT_TOKENS + 5
    for index in range(40):
        forecast.observe([traffic(5.0, finished=50)], 10.0 * (index + 4))
    assert forecast.expected(0)[0].output_tokens == pytest.approx(200.0, rel=0.05)


def test_a_burst_beyond_chance_is_held_and_then_let_go() -> None:
    forecast = after([10.0] * 10)
    assert forecast.expected(0.0)[0].burst == 0
    forecast.observe([replace(traffic(10.0), burst=12)], 110.0)
    assert forecast.expected(0.0)[0].burst == 0, "at random 10 requests a second come so close together at times"
    forecast.observe([replace(traffic(10.0), burst=60)], 120.0)
    forecast.observe([replace(traffic(10.0), burst=40)], 130.0)
    assert forecast.expected(0.0)[0].burst == forecast.held()[0].burst == 60
    for step in range(14, 31):
        forecast.observe([traffic(10.0)], 10.0 * step)
    assert forecast.expected(0.0)[0].burst == 60
    forecast.observe([traffic(10.0)], 310.0)
    assert forecast.expected(0.0)[0].burst == 40
    forecast.observe([traffic(10.0)], 320.0)
    assert forecast.expected(0.0)[0].burst == 0
