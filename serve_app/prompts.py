"""A checked body to token ids and engine requests, within the context; it knows no replica and no SLO."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from uuid import uuid4

from cluster.request import GenerationRequest
from engine.text import TextCodec
from serve_app.errors import bad_parameter, context_too_long
from serve_app.protocol import ChatBody, CompletionBody, GenerationBody

DEFAULT_COMPLETION_TOKENS = 16
"""OpenAI's default for the legacy endpoint."""
DEFAULT_CHAT_TOKENS = 1024
"""OpenAI's is "until the model stops". Admission counts what a request may come to need, so a bound that no chat
answer reaches lets in several times as many."""
INLINE_CHARACTERS = 8192
"""Some 2 ms of tokenizing; longer texts are tokenized in a thread, where they do not hold up other streams."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Of the replicas that may serve a request."""

    context_tokens: int
    max_prompt_tokens: int
    vocab_size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    token_ids: list[int]
    text: str
    """What `echo` repeats; empty for a chat."""


async def chat_prompt(body: ChatBody, codec: TextCodec, limits: Limits) -> Prompt:
    messages = [message.plain() for message in body.messages]
    size = sum(len(message.content) for message in body.messages)
    try:
        token_ids = await _in_thread_if_long(size, lambda: codec.encode_chat(messages))
    except ValueError as error:
        raise bad_parameter("messages", str(error)) from None
    _check_length(token_ids, limits)
    return Prompt(token_ids=token_ids, text="")


async def completion_prompts(body: CompletionBody, codec: TextCodec, limits: Limits) -> list[Prompt]:
    return [await _completion_prompt(prompt, codec, limits) for prompt in body.prompt]


async def _completion_prompt(prompt: str | list[int], codec: TextCodec, limits: Limits) -> Prompt:
    if isinstance(prompt, str):
        token_ids = await _in_thread_if_long(len(prompt), lambda: codec.encode(prompt))
        if not token_ids:
            raise bad_parameter("prompt", "Invalid 'prompt': it holds no tokens")
        _check_length(token_ids, limits)
        return Prompt(token_ids=token_ids, text=prompt)
    unknown = next((token for token in prompt if token >= limits.vocab_size), None)
    if unknown is not None:
        message = f"Invalid 'prompt': token {unknown} is outside the vocabulary of {limits.vocab_size}"
        raise bad_parameter("prompt", message)
    _check_length(prompt, limits)
    return Prompt(token_ids=prompt, text=codec.decode(prompt))


async def _in_thread_if_long(characters: int, encode: Callable[[], list[int]]) -> list[int]:
    return encode() if characters <= INLINE_CHARACTERS else await asyncio.to_thread(encode)


def _check_length(token_ids: Sequence[int], limits: Limits) -> None:
    if len(token_ids) >= limits.context_tokens:
        raise context_too_long(limits.context_tokens, len(token_ids), None)
    if len(token_ids) > limits.max_prompt_tokens:
        message = f"The prompt has {len(token_ids)} tokens, the limit is {limits.max_prompt_tokens}"
        raise bad_parameter("prompt", message, "prompt_too_long")


def max_tokens(wanted: int | None, default: int, prompts: Sequence[Prompt], limits: Limits) -> int:
    """What was asked for must fit beside the longest prompt; the default gives way."""
    longest = max(len(prompt.token_ids) for prompt in prompts)
    left = limits.context_tokens - longest
    if wanted is None:
        return min(default, left)
    if wanted > left:
        raise context_too_long(limits.context_tokens, longest, wanted)
    return wanted


def check_tokens(body: GenerationBody, max_tokens: int, limits: Limits) -> None:
    if body.min_tokens > max_tokens:
        message = f"Invalid 'min_tokens': {body.min_tokens} is more than max_tokens, {max_tokens}"
        raise bad_parameter("min_tokens", message)
    unknown = next((token for token in body.logit_bias if token >= limits.vocab_size), None)
    if unknown is not None:
        message = f"Invalid 'logit_bias': token {unknown} is outside the vocabulary of {limits.vocab_size}"
        raise bad_parameter("logit_bias", message)


def engine_requests(
    body: GenerationBody, prompts: Sequence[Prompt], max_tokens: int, logprobs: int | None
) -> list[GenerationRequest]:
    """Each prompt n times, in OpenAI's order."""
    return [
        GenerationRequest(
            request_id=uuid4().hex,
            prompt_token_ids=prompt.token_ids,
            sampling=body.sampling(max_tokens, logprobs, _seed(body.seed, choice)),
            priority=body.priority,
        )
        for prompt in prompts
        for choice in range(body.n)
    ]


def _seed(seed: int | None, choice: int) -> int | None:
    """The choices of a prompt differ, and are the same the next time; it stays within 64 bits."""
    return None if seed is None else (seed + choice + 2**63) % 2**64 - 2**63
