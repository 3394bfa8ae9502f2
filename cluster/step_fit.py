"""From ideal phase times to a machine's: the plain roofline, or fitted to a profile; it knows no model and no bytes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from cluster.profile import ProfilePoint, StepShape

KNEES = (1, 1.5, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 256, 512, math.inf)
"""Tokens a step from which on the linears may be bound by arithmetic; the fit takes the one with the least error."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Phases:
    """What a step's parts would take at the full bandwidth or the full arithmetic of the share."""

    decode_tokens: int
    prefill_tokens: int
    weights_s: float
    linear_flops_s: float
    decode_read_s: float
    decode_flops_s: float
    prefill_read_s: float
    prefill_flops_s: float

    @property
    def tokens(self) -> int:
        return self.decode_tokens + self.prefill_tokens

    @property
    def decode_attention_s(self) -> float:
        return max(self.decode_read_s, self.decode_flops_s)

    @property
    def prefill_attention_s(self) -> float:
        return max(self.prefill_read_s, self.prefill_flops_s)

    @property
    def attention_reads(self) -> bool:
        return self.decode_read_s + self.prefill_read_s >= self.decode_flops_s + self.prefill_flops_s

    def second_read_s(self, knee_tokens: float) -> float:
        """What a step of decodes and prompts pays where each are a pass of their own, so the weights are read twice."""
        if not (self.decode_tokens and self.prefill_tokens):
            return 0.0
        apart = max(1.0, self.decode_tokens / knee_tokens) + max(1.0, self.prefill_tokens / knee_tokens)
        return self.weights_s * (apart - max(1.0, self.tokens / knee_tokens))


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    t0_s: float
    linear_s: float
    attention_s: float
    linears_read: bool
    """The linears wait for weights rather than for arithmetic."""

    @property
    def total_s(self) -> float:
        return self.t0_s + self.linear_s + self.attention_s


class Machine(Protocol):
    def parts(self, step: StepShape, phases: Phases) -> Parts: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Roofline:
    """The formula as it stands."""

    t0_s: float

    def parts(self, step: StepShape, phases: Phases) -> Parts:
        return Parts(
            t0_s=self.t0_s,
            linear_s=max(phases.weights_s, phases.linear_flops_s),
            attention_s=max(
                phases.decode_read_s + phases.prefill_read_s, phases.decode_flops_s + phases.prefill_flops_s
            ),
            linears_read=phases.weights_s >= phases.linear_flops_s,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Residual:
    """What the fit leaves unexplained at a measured point, as log(measured / fitted)."""

    place: tuple[float, ...]
    log_ratio: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Fitted:
    """The formula with measured coefficients, drawn towards the measured points: exact at each, smooth between them.

    The decodes' and the prompts' attention add up here, because they are separate passes of the kernel.
    """

    t0_s: float
    per_token_s: float
    """What every token adds below the knee too: arithmetic that does not hide behind the weights, norms, sampling."""
    weights: float
    """Times the ideal time to read the weights."""
    knee_tokens: float
    """Beyond it the linears' time grows with the tokens, from what reading takes."""
    second_read: float
    """Times Phases.second_read_s: near 0 where decodes and prompts share a pass, as on the CPU."""
    decode_attention: float
    prefill_attention: float
    residuals: tuple[Residual, ...]

    def parts(self, step: StepShape, phases: Phases) -> Parts:
        ratio = self._ratio(_place(step))
        reading_s = self.weights * phases.weights_s
        arithmetic_s = self.per_token_s * phases.tokens + reading_s * max(0.0, phases.tokens / self.knee_tokens - 1)
        second_s = self.second_read * phases.second_read_s(self.knee_tokens)
        attention_s = (
            self.decode_attention * phases.decode_attention_s + self.prefill_attention * phases.prefill_attention_s
        )
        return Parts(
            t0_s=ratio * self.t0_s,
            linear_s=ratio * (reading_s + second_s + arithmetic_s),
            attention_s=ratio * attention_s,
            linears_read=reading_s + second_s >= arithmetic_s,
        )

    def _ratio(self, place: tuple[float, ...]) -> float:
        """By inverse distance to the fourth power: the nearest measurements count, those far off average out."""
        total = weight_sum = 0.0
        for residual in self.residuals:
            weight = 1 / (math.dist(place, residual.place) ** 4 + 1e-9)
            total += weight * residual.log_ratio
            weight_sum += weight
        return math.exp(total / weight_sum) if weight_sum else 1.0


def fit(points: Sequence[tuple[ProfilePoint, Phases]]) -> Fitted:
    """Non-negative least squares on the relative error, for the knee that leaves the least of it."""
    if not points:
        raise ValueError("a profile without points fits nothing")
    measured = np.array([point.step_s for point, _ in points])
    best: tuple[float, float, NDArray[np.float64]] | None = None
    for knee in KNEES:
        rows = np.array([_features(phases, knee) for _, phases in points]) / measured[:, None]
        coefficients = nonnegative_least_squares(rows, np.ones(len(points)))
        error = float(((rows @ coefficients - 1) ** 2).sum())
        if best is None or error < best[0]:
            best = (error, knee, coefficients)
    assert best is not None
    _, knee, (t0_s, per_token_s, weights, second_read, decode_attention, prefill_attention) = best
    bare = Fitted(
        t0_s=float(t0_s),
        per_token_s=float(per_token_s),
        weights=float(weights),
        second_read=float(second_read),
        knee_tokens=knee,
        decode_attention=float(decode_attention),
        prefill_attention=float(prefill_attention),
        residuals=(),
    )
    return _with_residuals(bare, points)


def nonnegative_least_squares(rows: NDArray[np.float64], target: NDArray[np.float64]) -> NDArray[np.float64]:
    """Exact, by trying every set of columns that may be positive: 63 sets for the six columns here."""
    best, best_error = np.zeros(rows.shape[1]), float((target**2).sum())
    for size in range(1, rows.shape[1] + 1):
        for columns in map(list, combinations(range(rows.shape[1]), size)):
            solution, *_ = np.linalg.lstsq(rows[:, columns], target)
            error = float(((rows[:, columns] @ solution - target) ** 2).sum())
            if (solution >= 0).all() and error < best_error:
                best, best_error = np.zeros(rows.shape[1]), error
                best[columns] = solution
    return best


def _features(phases: Phases, knee: float) -> tuple[float, ...]:
    return (
        1.0,
        float(phases.tokens),
        phases.weights_s * max(1.0, phases.tokens / knee),
        phases.second_read_s(knee),
        phases.decode_attention_s,
        phases.prefill_attention_s,
    )


def _with_residuals(bare: Fitted, points: Sequence[tuple[ProfilePoint, Phases]]) -> Fitted:
    residuals = tuple(
        Residual(
            place=_place(point.shape),
            log_ratio=math.log(point.step_s / bare.parts(point.shape, phases).total_s),
        )
        for point, phases in points
    )
    return replace(bare, residuals=residuals)


def _place(step: StepShape) -> tuple[float, ...]:
    """Shapes that differ by a factor are equally far apart, whatever their size; small ones are all near."""
    return (
        math.log(step.decode_sequences + 1),
        math.log(step.kv_tokens + 64) / 2,
        math.log(step.prefill_tokens + 16),
        math.log(step.prefill_context_tokens + 64) / 2,
    )
