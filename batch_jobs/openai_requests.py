"""A line of OpenAI's Batch format as tokens and sampling, checked by the HTTP API's own models; it generates nothing.

What has no meaning in a job is refused by name: streaming, several choices, several prompts, echo. `slo` and
`priority` are without effect: a job's rows have one rank.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
from pydantic import ValidationError

from batch_jobs.openai_lines import CHAT_URL, BatchLine, BatchUrl
from cluster.request import SamplingParams
from engine.openai_bodies import ChatBody, CompletionBody, GenerationBody
from engine.openai_problem import Problem, problem_of
from engine.text import TextCodec

BAD_REQUEST, NOT_FOUND = 400, 404


class RowRequest(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a row's answer in OpenAI's shape needs beside its result, and how it samples; JSON between the stages."""

    url: BatchUrl | None = None
    """None where that is not known, which only an error's row is."""
    model: str = ""
    sampling: SamplingParams | None = None
    """None: the job's."""
    status: int = 200
    """Of HTTP, with `param` and `code`: where the row cannot be run."""
    param: str | None = None
    code: str | None = None

    def encoded(self) -> str:
        return msgspec.json.encode(self).decode()

    @classmethod
    def decoded(cls, text: str) -> RowRequest:
        return msgspec.json.decode(text, type=cls)


class RequestRefusedError(ValueError):
    def __init__(self, problem: Problem, status: int = BAD_REQUEST) -> None:
        super().__init__(problem.message)
        self.request = RowRequest(status=status, param=problem.param, code=problem.code)


@dataclass(frozen=True, slots=True, kw_only=True)
class AskedRow:
    """A line that can be run."""

    prompt: str
    """Text, or the messages of a chat as JSON."""
    token_ids: list[int]
    request: RowRequest


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestRules:
    """What lines are checked against."""

    model: str
    variant: str
    max_tokens: int
    """Of a line that names none."""
    system: str | None
    """For chats that bring none."""

    def asked(self, line: BatchLine, codec: TextCodec, context_tokens: int) -> AskedRow:
        """RequestRefusedError where the HTTP API would refuse it too; `context_tokens` are for prompt and answer."""
        body = _parsed(line)
        self._check_model(body.model)
        _check_single(body)
        if isinstance(body, ChatBody):
            prompt, token_ids = self._chat(body, codec)
            logprobs = body.num_logprobs
        else:
            assert isinstance(body, CompletionBody), "the other endpoint"
            prompt, token_ids = _completion(body, codec)
            logprobs = body.logprobs
        max_tokens = self._max_tokens(body, len(token_ids), context_tokens)
        _check_tokens(body, max_tokens, codec.vocab_size)
        sampling = body.sampling(max_tokens, logprobs, body.seed)
        request = RowRequest(url=line.url, model=self.model, sampling=sampling)
        return AskedRow(prompt=prompt, token_ids=token_ids, request=request)

    def _check_model(self, name: str) -> None:
        known = (self.model, f"{self.model}:{self.variant}")
        if name not in known:
            message = f"The model '{name}' does not exist; known: {', '.join(known)}"
            raise RequestRefusedError(Problem(message=message, param="model", code="model_not_found"), NOT_FOUND)

    def _chat(self, body: ChatBody, codec: TextCodec) -> tuple[str, list[int]]:
        messages = [message.plain() for message in body.messages]
        if self.system is not None and messages[0]["role"] != "system":
            messages = [{"role": "system", "content": self.system}, *messages]
        try:
            return json.dumps(messages, ensure_ascii=False), codec.encode_chat(messages)
        except ValueError as error:
            raise _bad("messages", str(error)) from None

    def _max_tokens(self, body: GenerationBody, prompt_tokens: int, context_tokens: int) -> int:
        """What was asked for must fit behind the prompt; the default gives way."""
        left = context_tokens - prompt_tokens
        wanted = body.wanted_tokens
        if left < 1 or (wanted or 0) > left:
            asked = f"your prompt has {prompt_tokens} tokens"
            if left >= 1:
                asked = f"you requested {prompt_tokens} in the prompt and {wanted} for the completion"
            message = f"This model's maximum context length is {context_tokens} tokens, but {asked}"
            raise _bad("prompt" if left < 1 else "max_tokens", message, "context_length_exceeded")
        return min(self.max_tokens, left) if wanted is None else wanted


def _parsed(line: BatchLine) -> ChatBody | CompletionBody:
    kind = ChatBody if line.url == CHAT_URL else CompletionBody
    try:
        return kind.model_validate_json(line.body)
    except ValidationError as error:
        raise RequestRefusedError(problem_of(error)) from None


def _check_single(body: GenerationBody) -> None:
    if body.stream:
        raise _bad("stream", "Invalid 'stream': a batch does not stream")
    if body.n != 1:
        raise _bad("n", f"Invalid 'n': {body.n} choices; a line of a batch has one")
    if body.echoes:
        raise _bad("echo", "Invalid 'echo': not supported in a batch yet")


def _completion(body: CompletionBody, codec: TextCodec) -> tuple[str, list[int]]:
    if len(body.prompt) != 1:
        raise _bad("prompt", f"Invalid 'prompt': {len(body.prompt)} prompts; a line of a batch has one")
    (prompt,) = body.prompt
    if isinstance(prompt, str):
        token_ids = codec.encode(prompt)
        if not token_ids:
            raise _bad("prompt", "Invalid 'prompt': it holds no tokens")
        return prompt, token_ids
    _check_known("prompt", prompt, codec.vocab_size)
    return codec.decode(prompt), prompt


def _check_tokens(body: GenerationBody, max_tokens: int, vocab_size: int) -> None:
    if body.min_tokens > max_tokens:
        raise _bad("min_tokens", f"Invalid 'min_tokens': {body.min_tokens} is more than max_tokens, {max_tokens}")
    _check_known("logit_bias", list(body.logit_bias), vocab_size)


def _check_known(param: str, token_ids: Sequence[int], vocab_size: int) -> None:
    unknown = next((token for token in token_ids if token >= vocab_size), None)
    if unknown is not None:
        raise _bad(param, f"Invalid '{param}': token {unknown} is outside the vocabulary of {vocab_size}")


def _bad(param: str, message: str, code: str | None = None) -> RequestRefusedError:
    return RequestRefusedError(Problem(message=message, param=param, code=code))
