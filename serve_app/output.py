"""One sequence of an answer as it grows: tokens in, text and log probabilities out; it knows no endpoint's shape."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cluster.request import FinishReason, SamplingParams, TokenDelta, TokenLogprob
from engine.text import StreamDetokenizer, TextCodec


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """What one delta adds to a sequence."""

    index: int
    token_ids: list[int]
    text: str
    logprobs: list[TokenLogprob]
    prompt_logprobs: list[TokenLogprob | None] | None
    finish_reason: FinishReason | None

    @property
    def is_empty(self) -> bool:
        """Its text is held back, and there is nothing else to say."""
        return not (self.text or self.logprobs or self.prompt_logprobs or self.finish_reason)


class Output:
    """Counts a sequence's tokens and turns them into text that can be sent."""

    def __init__(self, codec: TextCodec, sampling: SamplingParams, index: int) -> None:
        self.index = index
        self.completion_tokens = 0
        self.cached_tokens = 0
        self.finished = False
        self._detokenizer = StreamDetokenizer.for_request(codec, sampling)

    def push(self, delta: TokenDelta) -> Piece:
        self.completion_tokens += len(delta.token_ids)
        self.cached_tokens += delta.cached_tokens
        text = self._detokenizer.push(delta.token_ids)
        if delta.finish_reason is not None:
            self.finished = True
            text += self._detokenizer.finish()
        return Piece(
            index=self.index,
            token_ids=delta.token_ids,
            text=text,
            logprobs=delta.logprobs or [],
            prompt_logprobs=delta.prompt_logprobs,
            finish_reason=delta.finish_reason,
        )


def usage(prompt_tokens: int, outputs: Sequence[Output], num_choices: int) -> dict[str, Any]:
    """Each prompt counts once, however many choices it has; what its first choice found cached was cached before."""
    completion_tokens = sum(output.completion_tokens for output in outputs)
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "prompt_tokens_details": {"cached_tokens": sum(output.cached_tokens for output in outputs[::num_choices])},
    }
