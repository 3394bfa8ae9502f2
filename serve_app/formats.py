"""The JSON of chat completions and of completions, whole and in chunks; it knows no HTTP and waits for nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from engine.openai_logprobs import CompletionLogprobs, chat_logprobs
from engine.text import TextCodec
from serve_app.output import Piece
from serve_app.prompts import Prompt

Json = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """What every object of one answer begins with."""

    id: str
    created: int
    model: str
    """With the variant that serves it: OpenAI, too, answers an alias with what stands behind it."""
    usage_in_chunks: bool = False

    def of(self, kind: str, **fields: Any) -> Json:
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.model,
            **fields,
        }

    def chunk(self, kind: str, choices: list[Json]) -> Json:
        return self.of(kind, choices=choices, **({"usage": None} if self.usage_in_chunks else {}))


class Format(Protocol):
    def opening(self, index: int) -> Json | None:
        """The chunk that opens a choice, where the shape has one."""

    def chunk(self, piece: Piece) -> Json: ...

    def usage_chunk(self, usage: Json) -> Json: ...

    def whole(self, pieces: Sequence[Sequence[Piece]], usage: Json) -> Json:
        """The answer in one object, from all the pieces of each choice."""


class ChatFormat:
    def __init__(self, head: Head, codec: TextCodec, *, with_logprobs: bool) -> None:
        self._head = head
        self._codec = codec
        self._with_logprobs = with_logprobs

    def opening(self, index: int) -> Json:
        delta = {"role": "assistant", "content": ""}
        return self._chunk({"index": index, "delta": delta, "logprobs": None, "finish_reason": None})

    def chunk(self, piece: Piece) -> Json:
        return self._chunk(
            {
                "index": piece.index,
                "delta": {"content": piece.text} if piece.text or not piece.finish_reason else {},
                "logprobs": self._logprobs([piece]),
                "finish_reason": piece.finish_reason,
            }
        )

    def usage_chunk(self, usage: Json) -> Json:
        return self._head.of("chat.completion.chunk", choices=[], usage=usage)

    def whole(self, pieces: Sequence[Sequence[Piece]], usage: Json) -> Json:
        choices = [
            {
                "index": index,
                "message": {"role": "assistant", "content": "".join(piece.text for piece in parts), "refusal": None},
                "logprobs": self._logprobs(parts),
                "finish_reason": parts[-1].finish_reason,
            }
            for index, parts in enumerate(pieces)
        ]
        return self._head.of("chat.completion", choices=choices, usage=usage)

    def _chunk(self, choice: Json) -> Json:
        return self._head.chunk("chat.completion.chunk", [choice])

    def _logprobs(self, pieces: Sequence[Piece]) -> Json | None:
        if not self._with_logprobs:
            return None
        return chat_logprobs(self._codec, [item for piece in pieces for item in piece.logprobs])


class CompletionFormat:
    """With `echo` a choice begins with its prompt, and so do its log probabilities."""

    def __init__(
        self,
        head: Head,
        codec: TextCodec,
        prompts: Sequence[Prompt],
        *,
        echo: bool,
        with_logprobs: bool,
        with_token_ids: bool = False,
    ) -> None:
        """`prompts`: one for each choice."""
        self._with_token_ids = with_token_ids
        self._head = head
        self._prompts = prompts
        self._echo = echo
        self._with_logprobs = with_logprobs
        self._logprobs = [CompletionLogprobs(codec) for _ in prompts]
        self._begun: set[int] = set()

    def opening(self, index: int) -> None:
        return None

    def chunk(self, piece: Piece) -> Json:
        return self._head.chunk("text_completion", [self._choice(piece.index, [piece])])

    def usage_chunk(self, usage: Json) -> Json:
        return self._head.of("text_completion", choices=[], usage=usage)

    def whole(self, pieces: Sequence[Sequence[Piece]], usage: Json) -> Json:
        choices = [self._choice(index, parts) for index, parts in enumerate(pieces)]
        return self._head.of("text_completion", choices=choices, usage=usage)

    def _choice(self, index: int, pieces: Sequence[Piece]) -> Json:
        text = "".join(piece.text for piece in pieces)
        token_ids = [token_id for piece in pieces for token_id in piece.token_ids]
        logprobs = [item for piece in pieces for item in piece.logprobs]
        if self._echo and index not in self._begun:
            prompt = self._prompts[index]
            text = prompt.text + text
            token_ids = prompt.token_ids + token_ids
            logprobs = [*(pieces[0].prompt_logprobs or []), *logprobs]
        self._begun.add(index)
        choice = {
            "index": index,
            "text": text,
            "logprobs": self._logprobs[index].of(token_ids, logprobs) if self._with_logprobs else None,
            "finish_reason": pieces[-1].finish_reason,
        }
        if not self._with_token_ids:
            return choice
        return choice | {"token_ids": token_ids, "token_logprobs": [asdict(item) for item in logprobs if item]}
