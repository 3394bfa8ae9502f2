"""The fit: exact least squares, and prediction of points it has not seen from noisy ones."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.profile import ProfilePoint, StepShape
from cluster.step_fit import Phases, fit, nonnegative_least_squares


def phases_of(step: StepShape) -> Phases:
    tokens = step.decode_sequences + step.prefill_tokens
    return Phases(
        decode_tokens=step.decode_sequences,
        prefill_tokens=step.prefill_tokens,
        weights_s=0.012,
        linear_flops_s=0.003 * tokens,
        decode_read_s=step.kv_tokens * 2e-6,
        decode_flops_s=step.kv_tokens * 1e-6,
        prefill_read_s=step.prefill_context_tokens * 2e-6,
        prefill_flops_s=step.prefill_tokens**2 * 1e-6,
    )


def machine_s(step: StepShape) -> float:
    """A made-up machine with soft knees, which no setting of the coefficients matches exactly."""
    phases = phases_of(step)
    reading, multiplying = 1.4 * phases.weights_s, 1.2 * phases.linear_flops_s
    return (
        0.002
        + 0.0002 * phases.tokens
        + math.hypot(reading, multiplying)
        + 1.5 * phases.decode_attention_s
        + 2 * phases.prefill_attention_s
    )


GRID = [
    StepShape(decode_sequences=batch, kv_tokens=batch * context, prefill_tokens=chunk)
    for batch in (0, 1, 2, 4, 8, 16, 32)
    for context in (32, 256, 1024)
    for chunk in (0, 64, 128)
    if batch + chunk
]


def test_the_fit_is_within_10_percent_on_points_it_has_not_seen() -> None:
    noise = random.Random(1)
    points = [ProfilePoint(shape=shape, step_s=machine_s(shape) * noise.uniform(0.97, 1.03)) for shape in GRID]
    fitted = fit([(point, phases_of(point.shape)) for point in points])
    for batch in (3, 6, 12, 24):
        for context in (64, 500):
            for chunk in (0, 100):
                step = StepShape(decode_sequences=batch, kv_tokens=batch * context, prefill_tokens=chunk)
                assert fitted.parts(step, phases_of(step)).total_s == pytest.approx(machine_s(step), rel=0.1)


def test_measured_points_are_met() -> None:
    points = [ProfilePoint(shape=shape, step_s=machine_s(shape)) for shape in GRID]
    fitted = fit([(point, phases_of(point.shape)) for point in points])
    for point in points:
        parts = fitted.parts(point.shape, phases_of(point.shape))
        assert parts.total_s == pytest.approx(point.step_s, rel=0.01)


def test_one_point_is_enough_to_predict_from() -> None:
    point = ProfilePoint(shape=GRID[0], step_s=0.05)
    fitted = fit([(point, phases_of(point.shape))])
    assert fitted.parts(GRID[0], phases_of(GRID[0])).total_s == pytest.approx(0.05)


def test_no_point_is_refused() -> None:
    with pytest.raises(ValueError, match="without points"):
        fit([])


def test_passes_of_their_own_read_the_weights_twice() -> None:
    """As on a GPU, whose decodes are one pass of the layers and whose prompts another."""

    def apart_s(step: StepShape) -> float:
        alone = (
            StepShape(decode_sequences=step.decode_sequences, kv_tokens=step.kv_tokens),
            StepShape(decode_sequences=0, kv_tokens=0, prefill_tokens=step.prefill_tokens),
        )
        return sum(machine_s(part) for part in alone if part.decode_sequences or part.prefill_tokens)

    points = [ProfilePoint(shape=shape, step_s=apart_s(shape)) for shape in GRID]
    fitted = fit([(point, phases_of(point.shape)) for point in points])
    together = fit([(ProfilePoint(shape=s, step_s=machine_s(s)), phases_of(s)) for s in GRID])
    assert fitted.second_read > 1
    assert together.second_read < 0.1 * fitted.second_read
    for batch in (3, 24):
        step = StepShape(decode_sequences=batch, kv_tokens=batch * 100, prefill_tokens=20)
        assert fitted.parts(step, phases_of(step)).total_s == pytest.approx(apart_s(step), rel=0.1)


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.lists(st.just(0.0) | st.floats(0.01, 10), min_size=3, max_size=3), min_size=4, max_size=8),
    st.integers(0, 99),
)
def test_least_squares_satisfies_the_optimality_conditions(rows: list[list[float]], seed: int) -> None:
    """Karush-Kuhn-Tucker: no coefficient is negative, and no change in an allowed direction lowers the error."""
    matrix = np.array(rows)
    target = np.random.default_rng(seed).uniform(0, 10, len(rows))
    solution = nonnegative_least_squares(matrix, target)
    gradient = matrix.T @ (matrix @ solution - target)
    slack = 1e-6 * (1 + np.abs(matrix).sum() * np.abs(target).sum())
    assert (solution >= 0).all()
    assert (gradient >= -slack).all()
    assert (np.abs(gradient[solution > 0]) <= slack).all()
