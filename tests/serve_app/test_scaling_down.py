"""A replica that Serve stops takes nothing new and ends what it streams; a variant without a replica is waited for."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import openai
import pytest

TEXT = "The sea is blue."
HI: Any = [{"role": "user", "content": "hi"}]


async def eventually(condition: Callable[[], bool]) -> None:
    for _ in range(400):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it did not happen within four seconds")


def by_name(replicas: Any, name: str) -> Any:
    return next(replica for replica in replicas if replica.variant == name)


def chat(running: Any, **fields: Any) -> Any:
    return running.openai.chat.completions.create(**{"model": "small", "messages": HI, **fields})


async def text_of(stream: Any) -> str:
    return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])


async def test_a_stream_of_a_stopping_replica_runs_to_its_end(running: Any, replicas: Any) -> None:
    stopping = by_name(replicas, "bf16")
    stopping.step_s = 0.6
    stream = await chat(running, model="small:bf16", stream=True)
    stopping.stopping = True
    await eventually(lambda: running.view.draining() == {"bf16": 1, "nf4": 0})
    assert "bf16-0" not in running.view.router.replicas
    assert running.view.loads("bf16") == []
    (entry,) = running.view.describe("bf16")
    assert (entry["state"], entry["in_flight"]) == ("draining", 1)
    for _ in range(3):
        assert (await chat(running)).model == "small:nf4"
    assert await text_of(stream) == TEXT
    await eventually(lambda: running.view.describe("bf16") == [])
    assert running.view.draining() == {"bf16": 0, "nf4": 0}


async def test_what_is_sent_before_it_is_known_goes_elsewhere(running: Any, replicas: Any) -> None:
    """The poll comes once a second; the first submission learns it, and is not a loss."""
    stopping, other = by_name(replicas, "bf16"), by_name(replicas, "nf4")
    stopping.step_s = 0.1
    stream = await chat(running, model="small:bf16", stream=True)
    other.refuses = True
    stopping.stopping = True
    with pytest.raises(openai.RateLimitError):
        await chat(running)
    assert "bf16-0" not in running.view.router.replicas
    other.refuses = False
    assert (await chat(running)).choices[0].message.content == TEXT
    assert await text_of(stream) == TEXT


async def test_a_replica_that_only_seemed_to_stop_is_chosen_again(running: Any, replicas: Any) -> None:
    running.view.stops("bf16-0")
    await eventually(lambda: "bf16-0" in running.view.router.replicas)
    assert (await chat(running, model="small:bf16")).choices[0].message.content == TEXT


async def test_a_client_that_leaves_a_stopping_replica_closes_its_channel(running: Any, replicas: Any) -> None:
    stopping = by_name(replicas, "bf16")
    stopping.step_s = 0.3
    stream = await chat(running, model="small:bf16", stream=True)
    stopping.stopping = True
    await eventually(lambda: running.view.draining()["bf16"] == 1)
    await stream.close()
    await eventually(lambda: running.view.draining()["bf16"] == 0)
    await eventually(lambda: stopping.outboxes["ingress"].unread_s > 0)
    assert stopping.aborted == []


async def test_a_request_waits_for_a_variant_that_is_woken(running: Any, replicas: Any) -> None:
    asleep = by_name(replicas, "bf16")
    asleep.stopping = True
    await eventually(lambda: running.view.describe("bf16") == [])
    before = running.surface.stats()
    waiting = asyncio.create_task(chat(running, model="small:bf16", extra_body={"slo": "patient"}))
    await eventually(lambda: running.surface.stats()["waiting"] == 1)
    after = running.surface.stats()
    assert after["named/bf16"] - before["named/bf16"] == 1
    assert after["arrivals/patient"] - before["arrivals/patient"] == 1
    asleep.stopping = False
    assert (await waiting).choices[0].message.content == TEXT


async def test_it_is_refused_when_its_class_has_waited_long_enough(running: Any, replicas: Any) -> None:
    for replica in replicas:
        replica.stopping = True
    await eventually(lambda: not running.view.router.replicas)
    started_s = time.monotonic()
    with pytest.raises(openai.RateLimitError):
        await chat(running)
    assert time.monotonic() - started_s > 0.4
    stats = running.surface.stats()
    assert (stats["arrivals/any"], stats["refused/any"], stats["finished/any"]) == (1, 1, 0)
