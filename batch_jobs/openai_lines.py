"""Lines of OpenAI's Batch format: an envelope around a request's body; it checks no body and knows no model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from batch_jobs.prompt_template import columns_of

BatchUrl = Literal["/v1/chat/completions", "/v1/completions"]
CHAT_URL: BatchUrl = "/v1/chat/completions"
COMPLETION_URL: BatchUrl = "/v1/completions"
URLS: dict[str, BatchUrl] = {CHAT_URL: CHAT_URL, COMPLETION_URL: COMPLETION_URL}


class BatchLine(msgspec.Struct, frozen=True, kw_only=True):
    """What a row asks for, on its way to where it is tokenized."""

    url: BatchUrl
    body: str
    """JSON"""

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> BatchLine:
        """ValueError names the field."""
        method, url, body = record.get("method"), record.get("url"), record.get("body")
        if method != "POST":
            raise ValueError(f"method is {_shown(method)}; it must be POST")
        if not isinstance(url, str) or url not in URLS:
            raise ValueError(f"url is {_shown(url)}; read are {', '.join(URLS)}")
        if not isinstance(body, dict):
            raise ValueError(f"body is {_shown(body)}; it must be an object")
        try:
            return cls(url=URLS[url], body=json.dumps(body, ensure_ascii=False))
        except RecursionError:
            raise ValueError("body is nested too deeply") from None

    def encoded(self) -> str:
        return msgspec.json.encode(self).decode()

    @classmethod
    def decoded(cls, text: str) -> BatchLine:
        return msgspec.json.decode(text, type=cls)


def custom_id_of(record: Mapping[str, Any]) -> str:
    """ValueError where it is no text."""
    value = record.get("custom_id")
    if value is None or value == "":
        raise ValueError(f"no value in custom_id; {columns_of(record)}")
    if not isinstance(value, str):
        raise ValueError(f"custom_id is {_shown(value)}; it must be text")
    return value


def _shown(value: object) -> str:
    return "missing" if value is None else json.dumps(value, default=str)[:60]
