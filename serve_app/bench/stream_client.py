"""One traced request to a running fleet as a streamed completion, with the times of its tokens; no schedule."""

from __future__ import annotations

import json
import random
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from http import HTTPStatus
from secrets import token_hex
from typing import Any

import httpx

from autoscaling.simulator.arrivals import PREFIX_BLOCK_TOKENS, Arrival

FIRST_TOKEN_ID = 100
"""Lower ones are special in most vocabularies."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    variant: str
    first_token_s: float
    last_token_s: float
    """By time.monotonic."""
    output_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    status: int
    reason: str


class StreamClient:
    """Prompts are made-up tokens of the traced length, shared as far as the trace's prefixes are."""

    def __init__(
        self, base_url: str, model: str, vocab: int, *, key: str | None = None, timeout_s: float = 600
    ) -> None:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._http = httpx.AsyncClient(
            base_url=base_url, headers=headers, timeout=timeout_s, limits=httpx.Limits(max_connections=None)
        )
        self._model, self._vocab = model, vocab
        self._run = token_hex(8)

    async def close(self) -> None:
        await self._http.aclose()

    async def fleet(self) -> dict[str, Any]:
        """GET /v1/fleet; httpx.HTTPError where nothing answers."""
        response = await self._http.get("fleet")
        response.raise_for_status()
        return dict(response.json())

    async def send(self, arrival: Arrival, number: int) -> Answered | Refused:
        """`number` makes the prompt's own tokens; httpx.HTTPError where the connection breaks."""
        body = {
            "model": self._model,
            "prompt": self.prompt(arrival, number),
            "max_tokens": arrival.output_tokens,
            "ignore_eos": True,
            "slo": arrival.slo_class,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        async with self._http.stream("POST", "completions", json=body) as response:
            if response.status_code != HTTPStatus.OK:
                return Refused(status=response.status_code, reason=_message(await response.aread()))
            return await _timed(events(response))

    def prompt(self, arrival: Arrival, number: int) -> list[int]:
        tokens: list[int] = []
        for name in arrival.prefix:
            tokens += self._drawn(f"prefix {name}", PREFIX_BLOCK_TOKENS)
        own = arrival.prompt_tokens - len(tokens)
        return [*tokens, *self._drawn(f"request {number}", own)] if own > 0 else tokens[: arrival.prompt_tokens]

    def _drawn(self, seed: str, count: int) -> list[int]:
        """Others in every run: what the one before left in the fleet's caches is none of this one's."""
        return random.Random(f"{self._run} {seed}").choices(range(FIRST_TOKEN_ID, self._vocab), k=count)


async def events(response: httpx.Response) -> AsyncIterator[dict[str, Any]]:
    """Of a stream of server-sent events, but for its last, [DONE]. httpx's own lines end within texts too (U+2028)."""
    held = b""
    async for piece in response.aiter_bytes():
        *lines, held = (held + piece).split(b"\n")
        for line in lines:
            if line.startswith(b"data: {"):
                yield json.loads(line.removeprefix(b"data: "))


async def _timed(told: AsyncIterator[dict[str, Any]]) -> Answered | Refused:
    first_s = last_s = 0.0
    variant, tokens = "", 0
    async for event in told:
        if "error" in event:
            return Refused(status=HTTPStatus.OK, reason=str(event["error"].get("message")))
        if usage := event.get("usage"):
            tokens = usage["completion_tokens"]
        if event.get("choices"):
            last_s = time.monotonic()
            first_s = first_s or last_s
            variant = str(event["model"]).rpartition(":")[2]
    return Answered(variant=variant, first_token_s=first_s, last_token_s=last_s, output_tokens=tokens)


def _message(body: bytes) -> str:
    try:
        return str(json.loads(body)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return body[:200].decode(errors="replace")
