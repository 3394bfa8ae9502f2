"""Result rows as lines of OpenAI's Batch format, answers and errors; it writes no files and generates nothing."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from batch_jobs.openai_lines import CHAT_URL
from batch_jobs.openai_requests import RowRequest
from cluster.request import TokenLogprob
from engine.openai_logprobs import CompletionLogprobs, chat_logprobs
from engine.text import TextCodec

SERVER_ERROR = 500
ID_LETTERS = 24
Json = dict[str, Any]


class RowAnswer(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a line has beside its result row; JSON in the column ANSWER."""

    is_chat: bool = True
    model: str = ""
    created: int = 0
    """Seconds since 1970."""
    status: int = 200
    """Of HTTP."""
    param: str | None = None
    code: str | None = None
    logprobs: Any = None

    def encoded(self) -> str:
        return msgspec.json.encode(self).decode()


def answer_of(
    request: str | None, variant: str, token_ids: Sequence[int], logprobs: Sequence[TokenLogprob], codec: TextCodec
) -> str | None:
    """Of a row that ran: RowAnswer as JSON, None where the job knows no such format."""
    if request is None:
        return None
    asked = RowRequest.decoded(request)
    is_chat = asked.url == CHAT_URL
    shaped = None
    if asked.sampling is not None and asked.sampling.logprobs is not None:
        shaped = chat_logprobs(codec, logprobs) if is_chat else CompletionLogprobs(codec).of(token_ids, logprobs)
    answer = RowAnswer(is_chat=is_chat, model=f"{asked.model}:{variant}", created=int(time.time()), logprobs=shaped)
    return answer.encoded()


def refusal_of(request: str | None) -> str | None:
    """Of a row that could not run, or whose engine failed: then its request was valid."""
    if request is None:
        return None
    asked = RowRequest.decoded(request)
    status = SERVER_ERROR if asked.status < 400 else asked.status
    return RowAnswer(status=status, param=asked.param, code=asked.code).encoded()


def result_line(row: Mapping[str, Any], answer: str) -> Json:
    """`row` as writing.ResultRow has it. The ids are made of the row's own, so that they are the same each time."""
    facts = msgspec.json.decode(answer, type=RowAnswer)
    digest = hashlib.sha256(f"{row['fingerprint']}:{row['id']}".encode()).hexdigest()[:ID_LETTERS]
    body = _error(row, facts) if row["error"] is not None else _completion(row, facts, digest)
    response = {"status_code": facts.status, "request_id": f"req_{digest}", "body": body}
    return {"id": f"batch_req_{digest}", "custom_id": row["id"], "response": response, "error": None}


def _error(row: Mapping[str, Any], facts: RowAnswer) -> Json:
    kind = "server_error" if facts.status >= SERVER_ERROR else "invalid_request_error"
    return {"error": {"message": row["error"], "type": kind, "param": facts.param, "code": facts.code}}


def _completion(row: Mapping[str, Any], facts: RowAnswer, digest: str) -> Json:
    """As the HTTP API answers."""
    text = {"index": 0, "text": row["text"]}
    if facts.is_chat:
        text = {"index": 0, "message": {"role": "assistant", "content": row["text"], "refusal": None}}
    return {
        "id": f"{'chatcmpl' if facts.is_chat else 'cmpl'}-{digest}",
        "object": "chat.completion" if facts.is_chat else "text_completion",
        "created": facts.created,
        "model": facts.model,
        "system_fingerprint": facts.model,
        "choices": [{**text, "logprobs": facts.logprobs, "finish_reason": row["finish_reason"]}],
        "usage": {
            "prompt_tokens": row["prompt_tokens"],
            "completion_tokens": row["completion_tokens"],
            "total_tokens": row["prompt_tokens"] + row["completion_tokens"],
        },
    }
