"""StepTimes: how long a replica's steps take, and many decode steps at once in closed form; it knows no request.

Between two knots of KV tokens the time of a decode step is taken as linear, which it is exactly by the roofline and to
0.1 % by a fitted profile. So n steps of B sequences, each reading B KV tokens more than the one before, are an
arithmetic series on each piece.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, log2, sqrt

from cluster.cost_model import CostModel
from cluster.profile import StepShape
from cluster.step_table import StepTable

FIRST_KNOT_TOKENS = 64
KNOTS_AN_OCTAVE = 8


@dataclass(frozen=True, slots=True)
class _Piece:
    """From `start_tokens` up to `end_tokens` a step takes base_s + token_s x KV tokens."""

    start_tokens: int
    end_tokens: int
    base_s: float
    token_s: float


class StepTimes:
    """Of one variant; its replicas share it."""

    def __init__(self, model: CostModel) -> None:
        self._table = StepTable([model])
        self._pieces: dict[tuple[int, int], _Piece] = {}
        self._last: dict[int, _Piece] = {}
        """Of each batch, the piece that was asked for last: the next question is mostly about the same one."""

    def mixed_s(self, shape: StepShape) -> float:
        """A step with chunks of prompts in it."""
        return self._table.step_s(0, shape)

    def decodes_s(self, batch: int, kv_tokens: int, steps: int) -> float:
        """The first step reads `kv_tokens`, each further one `batch` more."""
        total_s = 0.0
        while steps:
            piece = self._piece(batch, kv_tokens)
            here = min(steps, -((kv_tokens - piece.end_tokens) // batch))
            first_s = piece.base_s + piece.token_s * kv_tokens
            total_s += _series_s(first_s, piece.token_s * batch, here)
            steps -= here
            kv_tokens += here * batch
        return total_s

    def steps_lasting(self, batch: int, kv_tokens: int, duration_s: float, most: int) -> tuple[int, float]:
        """The fewest steps that together last so long, at least 1 and at most `most`, and how long they last."""
        steps, lasted_s = 0, 0.0
        while steps < most:
            piece = self._piece(batch, kv_tokens)
            here = min(most - steps, -((kv_tokens - piece.end_tokens) // batch))
            first_s, more_s = piece.base_s + piece.token_s * kv_tokens, piece.token_s * batch
            if _series_s(first_s, more_s, here) >= duration_s - lasted_s:
                here = _fewest(first_s, more_s, duration_s - lasted_s, here)
                return steps + here, lasted_s + _series_s(first_s, more_s, here)
            lasted_s += _series_s(first_s, more_s, here)
            steps += here
            kv_tokens += here * batch
        return most, lasted_s

    def _piece(self, batch: int, kv_tokens: int) -> _Piece:
        last = self._last.get(batch)
        if last is not None and last.start_tokens <= kv_tokens < last.end_tokens:
            return last
        knot = int(log2(kv_tokens / FIRST_KNOT_TOKENS) * KNOTS_AN_OCTAVE) if kv_tokens > FIRST_KNOT_TOKENS else -1
        piece = self._pieces.get((batch, knot)) or self._between(batch, knot)
        if kv_tokens >= piece.end_tokens:
            piece = self._pieces.get((batch, knot + 1)) or self._between(batch, knot + 1)
        self._last[batch] = piece
        return piece

    def _between(self, batch: int, knot: int) -> _Piece:
        """From a knot to the next; before the first one all is one piece."""
        start, end = _knot_tokens(knot) if knot >= 0 else 1, _knot_tokens(knot + 1)
        start_s, end_s = self._step_s(batch, start), self._step_s(batch, end)
        token_s = (end_s - start_s) / (end - start)
        piece = self._pieces[batch, knot] = _Piece(start, end, start_s - token_s * start, token_s)
        return piece

    def _step_s(self, batch: int, kv_tokens: int) -> float:
        return self._table.step_s(0, StepShape(decode_sequences=batch, kv_tokens=kv_tokens))


def _knot_tokens(knot: int) -> int:
    return ceil(FIRST_KNOT_TOKENS * 2 ** (knot / KNOTS_AN_OCTAVE))


def _series_s(first_s: float, more_s: float, steps: int) -> float:
    """Each step takes `more_s` more than the one before."""
    return steps * first_s + more_s * (steps * (steps - 1) // 2)


def _fewest(first_s: float, more_s: float, duration_s: float, most: int) -> int:
    """The least n in 1..most whose series lasts so long."""
    half = first_s - more_s / 2
    n = int(2 * duration_s / (half + sqrt(max(0.0, half * half + 2 * more_s * duration_s))))
    n = min(most, max(1, n))
    while n > 1 and _series_s(first_s, more_s, n - 1) >= duration_s:
        n -= 1
    while n < most and _series_s(first_s, more_s, n) < duration_s:
        n += 1
    return n
