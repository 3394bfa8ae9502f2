"""Log probabilities in the shapes of the two endpoints; it computes none."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cluster.request import TokenLogprob
from engine.text import TextCodec

LOWEST = -9999.0
"""For what has no probability at all (a token that logit_bias bars): JSON has no infinity."""


def chat_logprobs(codec: TextCodec, logprobs: Sequence[TokenLogprob]) -> dict[str, Any]:
    return {
        "content": [
            _entry(codec, item.token_id, item.logprob)
            | {"top_logprobs": [_entry(codec, token_id, logprob) for token_id, logprob in item.top]}
            for item in logprobs
        ],
        "refusal": None,
    }


class CompletionLogprobs:
    """The legacy shape: parallel lists, with each token's offset in the choice's text."""

    def __init__(self, codec: TextCodec) -> None:
        self._codec = codec
        self._offset = 0

    def of(self, token_ids: Sequence[int], logprobs: Sequence[TokenLogprob | None]) -> dict[str, Any]:
        """`logprobs` has None where there is none: for the first token of a prompt."""
        offsets = []
        for token_id in token_ids:
            offsets.append(self._offset)
            self._offset += len(self._codec.decode_token(token_id))
        return {
            "tokens": [token_text(self._codec, token_id) for token_id in token_ids],
            "token_logprobs": [None if item is None else _finite(item.logprob) for item in logprobs],
            "top_logprobs": [None if item is None else self._top(item) for item in logprobs],
            "text_offset": offsets,
        }

    def _top(self, item: TokenLogprob) -> dict[str, float]:
        """The best first; the chosen token too, where it is not among them."""
        top: dict[str, float] = {}
        for token_id, logprob in [*item.top, (item.token_id, item.logprob)]:
            top.setdefault(token_text(self._codec, token_id), _finite(logprob))
        return top


def token_text(codec: TextCodec, token_id: int) -> str:
    """As OpenAI writes it: a token that is a part of a character is spelt in bytes."""
    data = codec.token_bytes(token_id)
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def _entry(codec: TextCodec, token_id: int, logprob: float) -> dict[str, Any]:
    data = codec.token_bytes(token_id)
    return {"token": token_text(codec, token_id), "logprob": _finite(logprob), "bytes": list(data)}


def _finite(logprob: float) -> float:
    return max(logprob, LOWEST)
