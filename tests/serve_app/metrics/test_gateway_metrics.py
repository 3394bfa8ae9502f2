"""Whatever becomes of a request over HTTP is counted once."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

import openai

from tests.serve_app.test_dispatch import HI, chat, eventually


def counts(running: Any, slo_class: str = "any") -> dict[str, float]:
    """Requests of the class by their end, the ends that none had left out."""
    found: dict[str, float] = {}
    for (name, labels), value in running.meter.values.items():
        if name.startswith("quantfleet_requests_") and value and ("slo_class", slo_class) in labels:
            found[name.removeprefix("quantfleet_requests_")] = found.get(name, 0) + value
    return found


def tokens(running: Any, name: str) -> float:
    return sum(value for (metric, _), value in running.meter.values.items() if metric == f"quantfleet_{name}_tokens")


async def test_an_answer(running: Any) -> None:
    answer = (await chat(running)).parse()
    assert counts(running) == {"offered": 1, "met": 1, "served": 1}
    assert tokens(running, "generated") == answer.usage.completion_tokens
    assert tokens(running, "prompt") == answer.usage.prompt_tokens
    measured = {name for name, _ in running.meter.observed}
    assert measured >= {"quantfleet_ttft_seconds", "quantfleet_tpot_seconds", "quantfleet_request_duration_seconds"}


async def test_a_refusal(running: Any, replicas: Any) -> None:
    for replica in replicas:
        replica.refuses = True
    with suppress(openai.RateLimitError):
        await chat(running)
    assert counts(running) == {"offered": 1, "rejected": 1}


async def test_replicas_lost_before_and_after_the_first_token(running: Any, replicas: Any) -> None:
    for replica in replicas:
        replica.dies_after = 2
    with suppress(openai.APIError):
        await chat(running)
    assert counts(running) == {"offered": 1, "failed": 1}


async def test_a_client_that_leaves(running: Any, replicas: Any) -> None:
    for replica in replicas:
        replica.step_s = 0.05
    stream = await running.openai.chat.completions.create(model="small", messages=HI, stream=True)
    async for _ in stream:
        break
    await stream.close()
    await eventually(lambda: "cancelled" in counts(running))
    assert counts(running) == {"offered": 1, "cancelled": 1}


async def test_a_client_that_leaves_before_the_first_token(running: Any, replicas: Any) -> None:
    for replica in replicas:
        replica.step_s = 5
    body = {"model": "small", "messages": HI}
    call = asyncio.create_task(running.direct.post("/v1/chat/completions", json=body))
    await eventually(lambda: running.dispatcher.waiting == 1)
    call.cancel()
    await eventually(lambda: "cancelled" in counts(running))
    assert counts(running) == {"offered": 1, "cancelled": 1}


async def test_background_work_is_served_and_offered_by_nobody(running: Any) -> None:
    await chat(running, extra_body={"slo": "background"})
    assert counts(running, "background") == {"served": 1}
    assert not counts(running)
