"""One HTTP request's answer under way: its sequences' pieces, its usage, how long it took; it knows no JSON shape."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import Any

from cluster.choice import Choice
from cluster.slo import Outcome
from serve_app.dispatch import Reply
from serve_app.errors import ApiError
from serve_app.output import Output, Piece, usage


class Answer:
    def __init__(
        self, reply: Reply, outputs: list[Output], *, prompt_tokens: int, num_choices: int, arrived_s: float
    ) -> None:
        """`prompt_tokens` of all prompts; `num_choices` for each of them. Made when the first token has come."""
        self._reply = reply
        self.first_token = reply.first_token
        self._outputs = outputs
        self._prompt_tokens = prompt_tokens
        self._num_choices = num_choices
        self._arrived_s = arrived_s
        self._first_s = self._last_s = time.monotonic()
        self.is_broken = False
        """Its replica was lost before its end."""

    @property
    def variant(self) -> str:
        return self._reply.choice.variant

    @property
    def choice(self) -> Choice:
        return self._reply.choice

    @property
    def ttft_ms(self) -> float:
        return (self._first_s - self._arrived_s) * 1e3

    @property
    def duration_s(self) -> float:
        """From the arrival to the newest token."""
        return self._last_s - self._arrived_s

    @property
    def is_complete(self) -> bool:
        """Whether every sequence has ended by itself."""
        return all(output.finished for output in self._outputs)

    @property
    def output_tokens(self) -> list[int]:
        """Of each sequence, so far."""
        return [output.completion_tokens for output in self._outputs]

    @property
    def served(self) -> dict[str, Any]:
        choice = self._reply.choice
        return {
            "variant": choice.variant,
            "reason": choice.reason,
            "predicted_ttft_ms": round(choice.predicted_ttft_ms, 1),
            "predicted_tpot_ms": round(choice.predicted_tpot_ms, 1),
        }

    @property
    def headers(self) -> dict[str, str]:
        choice = self._reply.choice
        return {
            "X-Quantfleet-Variant": choice.variant,
            "X-Quantfleet-Reason": choice.reason,
            "X-Quantfleet-Predicted-TTFT-Ms": f"{choice.predicted_ttft_ms:.1f}",
            "X-Quantfleet-Predicted-TPOT-Ms": f"{choice.predicted_tpot_ms:.1f}",
        }

    async def pieces(self) -> AsyncIterator[Piece]:
        """ApiError where the replica is lost."""
        try:
            async for index, delta in self._reply.deltas():
                self._last_s = time.monotonic()
                yield self._outputs[index].push(delta)
        except ApiError:
            self.is_broken = True
            raise

    async def whole(self) -> list[list[Piece]]:
        """All pieces of each sequence."""
        pieces: list[list[Piece]] = [[] for _ in self._outputs]
        async for piece in self.pieces():
            pieces[piece.index].append(piece)
        return pieces

    def usage(self) -> dict[str, Any]:
        return usage(self._prompt_tokens, self._outputs, self._num_choices)

    def outcome(self, quality: float | None) -> Outcome:
        """When every piece has come. TPOT is the longest sequence's: its tokens came over the whole time."""
        longest = max(output.completion_tokens for output in self._outputs)
        tpot_ms = (self._last_s - self._first_s) * 1e3 / (longest - 1) if longest > 1 else None
        return Outcome(ttft_ms=self.ttft_ms, tpot_ms=tpot_ms, quality=quality)
