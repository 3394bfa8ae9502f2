"""A row's prompt as token ids, by the model's chat template and tokenizer; it reads no files and generates nothing."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

from batch_jobs.reading import InputRow
from engine.text import TextCodec


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedRow:
    """A row ready for the engine; one with an error has no tokens and goes through as it is."""

    id: str
    prompt: str
    token_ids: list[int]
    error: str | None = None


@dataclass(frozen=True, kw_only=True)
class PromptEncoder:
    """How rows become tokens: a prompt is one user message, unless `raw` or the model knows no chat."""

    checkpoint: str
    max_prompt_tokens: int
    raw: bool = False
    system: str | None = None

    def encode_all(self, rows: Iterable[InputRow]) -> Iterator[EncodedRow]:
        return (self.encode(row) for row in rows)

    def encode(self, row: InputRow) -> EncodedRow:
        if row.error is not None:
            return self._failed(row, row.error)
        try:
            token_ids = self._token_ids(row)
        except ValueError as error:
            return self._failed(row, str(error))
        if len(token_ids) > self.max_prompt_tokens:
            return self._failed(row, f"the prompt has {len(token_ids)} tokens; at most {self.max_prompt_tokens} fit")
        if not token_ids:
            return self._failed(row, "the prompt has no tokens")
        return EncodedRow(id=row.id, prompt=row.prompt, token_ids=token_ids)

    def _token_ids(self, row: InputRow) -> list[int]:
        if row.is_chat:
            return self._codec.encode_chat(self._with_system(json.loads(row.prompt)))
        if self.raw or not self._model_chats:
            return self._codec.encode(row.prompt)
        return self._codec.encode_chat(self._with_system([{"role": "user", "content": row.prompt}]))

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

    @staticmethod
    def _failed(row: InputRow, error: str) -> EncodedRow:
        return EncodedRow(id=row.id, prompt=row.prompt, token_ids=[], error=error)
