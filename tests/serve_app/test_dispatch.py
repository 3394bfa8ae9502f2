"""Refusals, losses, fallbacks, drains and clients that go away, from the outside."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import openai
import pytest

TEXT = "The sea is blue."
HI: Any = [{"role": "user", "content": "hi"}]


def chat(running: Any, **fields: Any) -> Any:
    return running.openai.chat.completions.with_raw_response.create(**{"model": "small", "messages": HI, **fields})


async def eventually(condition: Callable[[], bool]) -> None:
    for _ in range(200):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it did not happen within two seconds")


def by_name(replicas: Any, name: str) -> Any:
    return next(replica for replica in replicas if replica.variant == name)


@pytest.mark.parametrize("refusing", ["bf16", "nf4"])
async def test_a_refused_request_is_tried_elsewhere(running: Any, replicas: Any, refusing: str) -> None:
    by_name(replicas, refusing).refuses = True
    for _ in range(3):
        raw = await chat(running)
        assert raw.headers["x-quantfleet-variant"] != refusing


async def test_a_class_that_queues_waits_until_its_deadline(running: Any, replicas: Any) -> None:
    for replica in replicas:
        replica.refuses = True
    started_s = time.monotonic()
    with pytest.raises(openai.RateLimitError) as caught:
        await chat(running)
    assert 0.4 < time.monotonic() - started_s < 2.5
    assert caught.value.code == "fleet_full"
    assert int(caught.value.response.headers["retry-after"]) >= 1


async def test_a_class_that_rejects_does_so_at_once(running: Any, replicas: Any) -> None:
    by_name(replicas, "bf16").refuses = True
    started_s = time.monotonic()
    with pytest.raises(openai.RateLimitError):
        await chat(running, extra_body={"slo": "best"})
    assert time.monotonic() - started_s < 0.3


async def test_a_queued_request_is_served_when_there_is_room(running: Any, replicas: Any) -> None:
    for replica in replicas:
        replica.refuses = True
    waiting = asyncio.create_task(chat(running, extra_body={"slo": "any"}))
    await asyncio.sleep(0.1)
    for replica in replicas:
        replica.refuses = False
    assert (await waiting).parse().choices[0].message.content == TEXT


async def test_a_replica_lost_before_the_first_token_is_replaced_by_another(running: Any, replicas: Any) -> None:
    dying = by_name(replicas, "bf16")
    dying.dies_after = 0
    answers = [(await chat(running)).parse() for _ in range(3)]
    assert [answer.choices[0].message.content for answer in answers] == [TEXT] * 3
    if not dying.dead:  # the router took the other one: then make it take this one
        with pytest.raises(openai.APIStatusError):
            await chat(running, model="small:bf16")


async def test_two_losses_are_told(running: Any, replicas: Any) -> None:
    for replica in replicas:
        replica.dies_after = 0
    with pytest.raises(openai.InternalServerError) as caught:
        await chat(running)
    assert (caught.value.status_code, caught.value.code) == (503, "replica_lost")


async def test_a_replica_lost_in_a_stream_is_an_error_event(running: Any, replicas: Any) -> None:
    for replica in replicas:
        replica.dies_after = 2
    stream = await running.openai.chat.completions.create(model="small", messages=HI, stream=True)
    texts = []
    with pytest.raises(openai.APIError, match="lost"):  # noqa: PT012  (it is the iteration that raises)
        async for chunk in stream:
            texts.append(chunk.choices[0].delta.content or "")
    assert "".join(texts) == "The sea"


async def test_a_replica_lost_in_a_whole_answer_is_503(running: Any, replicas: Any) -> None:
    for replica in replicas:
        replica.dies_after = 2
    with pytest.raises(openai.InternalServerError) as caught:
        await chat(running)
    assert caught.value.status_code == 503
    assert running.surface.in_flight == 0


async def test_a_dead_replica_is_forgotten_and_health_says_so(running: Any, replicas: Any) -> None:
    by_name(replicas, "nf4").dead = True
    with pytest.raises(openai.APIStatusError):
        await chat(running, model="small:nf4", extra_body={"slo": "best"})
    health = await running.http.get("/healthz")
    assert (health.status_code, health.json()["missing"]) == (503, ["nf4"])


async def test_a_client_that_leaves_a_stream_is_aborted(running: Any, replicas: Any) -> None:
    for replica in replicas:
        replica.step_s = 0.05
    stream = await running.openai.chat.completions.create(model="small", messages=HI, stream=True)
    await anext(stream)
    await stream.close()
    await eventually(lambda: any(replica.aborted for replica in replicas))
    await eventually(lambda: not any(replica.tasks for replica in replicas))
    assert running.surface.in_flight == 0


async def test_a_client_that_leaves_before_the_first_token_is_aborted(running: Any, replicas: Any) -> None:
    for replica in replicas:
        replica.step_s = 5.0
    body = {"model": "small", "messages": HI, "n": 2}
    task = asyncio.create_task(running.direct.post("/v1/chat/completions", json=body))
    await eventually(lambda: any(replica.tasks for replica in replicas))
    task.cancel()
    await asyncio.wait([task])
    await eventually(lambda: sum(len(replica.aborted) for replica in replicas) == 2)
    assert running.surface.in_flight == running.dispatcher.waiting == 0


async def test_a_drain_ends_what_runs_and_takes_nothing_new(running: Any, replicas: Any) -> None:
    for replica in replicas:
        replica.step_s = 0.05
    task = asyncio.create_task(chat(running))
    await eventually(lambda: any(replica.tasks for replica in replicas))
    running.surface.drain()
    with pytest.raises(openai.InternalServerError) as caught:
        await chat(running)
    assert caught.value.code == "shutting_down"
    assert (await running.http.get("/healthz")).status_code == 503
    assert (await task).parse().choices[0].message.content == TEXT


async def test_the_end_of_a_drain_is_told_to_streams(running: Any, replicas: Any) -> None:
    for replica in replicas:
        replica.step_s = 0.05
    stream = await running.openai.chat.completions.create(model="small", messages=HI, stream=True)
    running.view.fail_all("the fleet is shutting down")
    with pytest.raises(openai.APIError, match="shutting down"):
        async for _ in stream:
            pass


async def test_a_failed_request_leaves_the_router_nothing_to_count(running: Any, replicas: Any) -> None:
    for replica in replicas:
        replica.refuses = True
    with pytest.raises(openai.RateLimitError):
        await chat(running)
    assert not any(view.live for view in running.view.router.replicas.values())


async def test_the_engine_is_told_what_is_left_of_the_time_to_the_first_token(running: Any, replicas: Any) -> None:
    for replica in replicas:
        replica.refuses = True
    slo = {"ttft_ms": 5000, "min_quality": 0}
    waiting = asyncio.create_task(chat(running, n=2, extra_body={"slo": slo, "priority": -3}))
    await eventually(lambda: running.dispatcher.queued["request", None] == 1)
    await asyncio.sleep(0.2)
    for replica in replicas:
        replica.refuses = False
    await waiting
    await chat(running, extra_body={"slo": {"objective": "throughput"}})
    *latency, throughput = [request for replica in replicas for request in replica.submitted]
    if throughput.objective == "latency":
        latency, throughput = [latency[1], throughput], latency[0]
    assert [(request.objective, request.priority) for request in latency] == [("latency", -3)] * 2
    assert all(3.0 < request.deadline_s < 4.8 for request in latency)
    assert (throughput.objective, throughput.priority) == ("throughput", 0)
    assert 0 < throughput.deadline_s < 0.5
    assert not any(running.dispatcher.queued.values())


async def test_what_waits_for_a_named_variant_is_counted_by_it(running: Any, replicas: Any) -> None:
    by_name(replicas, "nf4").refuses = True
    waiting = asyncio.create_task(chat(running, model="small:nf4", extra_body={"slo": "patient"}))
    await eventually(lambda: running.dispatcher.queued["patient", "nf4"] == 1)
    stats = running.surface.stats()
    assert (stats["queued/patient"], stats["queued/any"]) == (1, 0)
    assert (stats["awaited/nf4"], stats["awaited/bf16"], stats["waiting"]) == (1, 0, 1)
    by_name(replicas, "nf4").refuses = False
    await waiting
    assert running.surface.stats()["queued/patient"] == running.surface.stats()["awaited/nf4"] == 0


async def test_the_second_request_of_a_conversation_is_known_by_its_prefix(running: Any) -> None:
    turns: Any = [{"role": "user", "content": "Tell me of the sea. " * 40}]
    first = await chat(running, messages=turns, model="small:bf16")
    assert "were there before" not in first.headers["x-quantfleet-reason"]
    turns += [{"role": "assistant", "content": TEXT}, {"role": "user", "content": "And of the sky?"}]
    second = await chat(running, messages=turns, model="small:bf16")
    assert "prompt tokens were there before" in second.headers["x-quantfleet-reason"]
