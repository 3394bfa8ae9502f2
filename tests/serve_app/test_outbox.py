"""Frames of a channel: nothing lost, nothing after the end, and an end when there is no work."""

from __future__ import annotations

import asyncio
import time

from cluster.load import Load
from cluster.request import TokenDelta
from serve_app.outbox import LINGER_S, Outbox
from serve_app.wire import Frame, decode_frame

LOAD = Load(replica_id="r", variant="v", measured_at_s=0.0, kv_tokens_capacity=64, kv_tokens_used=0)


def delta(request_id: str, token_id: int, *, last: bool = False) -> TokenDelta:
    return TokenDelta(request_id=request_id, token_ids=[token_id], finish_reason="stop" if last else None)


async def collect(outbox: Outbox) -> list[Frame]:
    return [decode_frame(frame) async for frame in outbox.frames()]


async def test_steps_that_were_not_read_come_in_one_frame() -> None:
    outbox = Outbox(lambda: LOAD)
    outbox.add(["a", "b"])
    for step in (delta("a", 1), delta("b", 2), delta("a", 3, last=True), delta("b", 4, last=True)):
        outbox.put(step)
    frames = await collect(outbox)
    assert len(frames) == 1
    assert {d.request_id: (d.token_ids, d.finish_reason) for d in frames[0].deltas} == {
        "a": ([1, 3], "stop"),
        "b": ([2, 4], "stop"),
    }
    assert frames[0].load == LOAD


async def test_a_frame_a_step_where_the_reader_keeps_up() -> None:
    outbox = Outbox(lambda: LOAD)
    outbox.add(["a"])
    reading = asyncio.create_task(collect(outbox))
    for number in range(3):
        await asyncio.sleep(0.01)
        outbox.put(delta("a", number, last=number == 2))
    assert [frame.deltas[0].token_ids for frame in await reading] == [[0], [1], [2]]


async def test_it_stays_open_while_there_is_work_and_ends_soon_after() -> None:
    outbox = Outbox(lambda: LOAD)
    outbox.add(["a"])
    reading = asyncio.create_task(collect(outbox))
    await asyncio.sleep(3 * LINGER_S)
    assert not reading.done()
    outbox.put(delta("a", 1, last=True))
    frames = await asyncio.wait_for(reading, 3 * LINGER_S)
    assert len(frames) == 1


async def test_a_last_delta_that_meets_the_time_out_is_not_lost() -> None:
    """Both become ready while the loop is busy elsewhere, the time-out first."""
    outbox = Outbox(lambda: LOAD)
    outbox.add(["a"])
    reading = asyncio.create_task(collect(outbox))
    await asyncio.sleep(0)
    time.sleep(1.5 * LINGER_S)
    asyncio.get_running_loop().call_soon(outbox.put, delta("a", 1, last=True))
    assert len(await asyncio.wait_for(reading, 5)) == 1


async def test_a_newer_channel_takes_over() -> None:
    outbox = Outbox(lambda: LOAD)
    outbox.add(["a"])
    old = asyncio.create_task(collect(outbox))
    await asyncio.sleep(0.01)
    new = asyncio.create_task(collect(outbox))
    await asyncio.sleep(0.01)
    outbox.put(delta("a", 1, last=True))
    assert await old == []
    assert len(await new) == 1


async def test_what_was_dropped_or_has_ended_is_not_told() -> None:
    outbox = Outbox(lambda: LOAD)
    outbox.add(["a", "b"])
    outbox.drop("a")
    outbox.put(delta("a", 1))
    outbox.put(delta("b", 2, last=True))
    outbox.put(delta("b", 3))
    frames = await collect(outbox)
    assert [(d.request_id, d.token_ids) for frame in frames for d in frame.deltas] == [("b", [2])]


async def test_a_dead_engine_ends_everything_that_runs() -> None:
    outbox = Outbox(lambda: LOAD)
    outbox.add(["a", "b"])
    outbox.put(delta("a", 1))
    outbox.fail("it died")
    (frame,) = await collect(outbox)
    assert {d.request_id: (d.token_ids, d.finish_reason, d.error) for d in frame.deltas} == {
        "a": ([1], "error", "it died"),
        "b": ([], "error", "it died"),
    }


async def test_time_without_a_channel_counts_from_the_first_request_on() -> None:
    outbox = Outbox(lambda: LOAD)
    await asyncio.sleep(0.05)
    outbox.add(["a"])
    assert outbox.unread_s < 0.04
    frames = outbox.frames()
    reading = asyncio.ensure_future(anext(frames))
    await asyncio.sleep(0.01)
    assert outbox.unread_s == 0.0
    reading.cancel()
    await asyncio.wait([reading])
    await asyncio.sleep(0.02)
    assert outbox.unread_s >= 0.01
