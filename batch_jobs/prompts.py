"""A row's prompt as token ids, by the model's chat template and tokenizer; it reads no files and generates nothing."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

from batch_jobs.openai_lines import CHAT_URL, COMPLETION_URL, BatchLine
from batch_jobs.openai_requests import BAD_REQUEST, RequestRefusedError, RequestRules, RowRequest
from batch_jobs.reading import InputRow
from engine.text import TextCodec


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedRow:
    """A row ready for the engine; one with an error has no tokens and goes through as it is."""

    id: str
    prompt: str
    token_ids: list[int]
    error: str | None = None
    request: str | None = None
    """openai_requests.RowRequest as JSON, of a job that reads or writes OpenAI's Batch format."""


@dataclass(frozen=True, kw_only=True)
class PromptEncoder:
    """How rows become tokens: a prompt is one user message, unless `raw` or the model knows no chat."""

    checkpoint: str
    max_prompt_tokens: int
    raw: bool = False
    system: str | None = None
    requests: RequestRules | None = None
    """Of a job that reads or writes OpenAI's Batch format."""

    def encode_all(self, rows: Iterable[InputRow]) -> Iterator[EncodedRow]:
        return (self.encode(row) for row in rows)

    def encode(self, row: InputRow) -> EncodedRow:
        if row.error is not None:
            return self._failed(row, row.error)
        try:
            encoded = self._plain(row) if row.request is None else self._asked(row, row.request)
        except ValueError as error:
            request = error.request if isinstance(error, RequestRefusedError) else None
            return self._failed(row, str(error), request)
        if len(encoded.token_ids) > self.max_prompt_tokens:
            num_tokens = len(encoded.token_ids)
            return self._failed(row, f"the prompt has {num_tokens} tokens; at most {self.max_prompt_tokens} fit")
        if not encoded.token_ids:
            return self._failed(row, "the prompt has no tokens")
        return encoded

    def _plain(self, row: InputRow) -> EncodedRow:
        if row.is_chat:
            url, token_ids = CHAT_URL, self._codec.encode_chat(self._with_system(json.loads(row.prompt)))
        elif self.raw or not self._model_chats:
            url, token_ids = COMPLETION_URL, self._codec.encode(row.prompt)
        else:
            messages = self._with_system([{"role": "user", "content": row.prompt}])
            url, token_ids = CHAT_URL, self._codec.encode_chat(messages)
        request = None if self.requests is None else RowRequest(url=url, model=self.requests.model).encoded()
        return EncodedRow(id=row.id, prompt=row.prompt, token_ids=token_ids, request=request)

    def _asked(self, row: InputRow, line: str) -> EncodedRow:
        if self.requests is None:
            raise ValueError("the row is of OpenAI's Batch format, which is not read here")
        asked = self.requests.asked(BatchLine.decoded(line), self._codec, self.max_prompt_tokens + 1)
        return EncodedRow(id=row.id, prompt=asked.prompt, token_ids=asked.token_ids, request=asked.request.encoded())

    def _with_system(self, messages: list[dict[str, str]]) -> list[dict[str, str]]:
        """The job's system prompt, where the chat brings none of its own."""
        if self.system is None or messages[0]["role"] == "system":
            return messages
        return [{"role": "system", "content": self.system}, *messages]

    @cached_property
    def _codec(self) -> TextCodec:
        """Loaded where it is used (100 ms), once in each process, and never pickled."""
        return TextCodec(self.checkpoint)

    @cached_property
    def _model_chats(self) -> bool:
        try:
            self._codec.encode_chat([{"role": "user", "content": "Hello"}])
        except ValueError:
            return False
        return True

    def __getstate__(self) -> dict[str, object]:
        return {name: getattr(self, name) for name in self.__dataclass_fields__}

    def _failed(self, row: InputRow, error: str, request: RowRequest | None = None) -> EncodedRow:
        if self.requests is not None:
            request = request or RowRequest(status=BAD_REQUEST)
        encoded = None if request is None else request.encoded()
        return EncodedRow(id=row.id, prompt=row.prompt, token_ids=[], error=error, request=encoded)
