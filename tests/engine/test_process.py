"""EngineProcess: a real engine in a real process, its answers, its death and its parent's."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest
import pytest_asyncio

from cluster.engine_spec import EngineSpec
from cluster.request import GenerationRequest, SamplingParams, TokenDelta
from cluster.variants import Variant
from engine.checkpoint import ensure_checkpoint
from engine.process import EngineDied, EngineProcess
from engine.text import TextCodec
from engine.wire import DeltaBuffer, StepMessage

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.asyncio(loop_scope="module")


def spec(**changes: object) -> EngineSpec:
    values: dict[str, object] = {
        "replica_id": "bf16-0",
        "checkpoint": str(ensure_checkpoint("embedded:smollm2-135m")),
        "variant": Variant(name="bf16"),
        "kv_capacity_tokens": 2048,
        "max_context": 2048,
    }
    return EngineSpec(**(values | changes))


def request(request_id: str, prompt: list[int], **sampling: object) -> GenerationRequest:
    params = SamplingParams(**({"max_tokens": 8, "temperature": 0.0} | sampling))
    return GenerationRequest(request_id=request_id, prompt_token_ids=prompt, sampling=params)


async def until_done(client: EngineProcess, num_requests: int) -> dict[str, TokenDelta]:
    """Each request's deltas as one, once so many have ended."""
    whole = DeltaBuffer()
    ended = 0
    async with asyncio.timeout(60):
        async for message in client.messages():
            whole.add(message.deltas)
            ended += sum(delta.finish_reason is not None for delta in message.deltas)
            if ended == num_requests:
                return {delta.request_id: delta for delta in whole.take()}
    raise AssertionError("the messages ended")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client() -> AsyncIterator[EngineProcess]:
    client = EngineProcess.start(spec())
    async with asyncio.timeout(60):
        await client.ready()
    yield client
    await client.stop()
    assert not psutil.pid_exists(client.pid)


async def test_requests_are_answered_together(client: EngineProcess) -> None:
    codec = TextCodec(spec().checkpoint)
    questions = {"France": "Paris", "Japan": "Tokyo"}
    for country in questions:
        prompt = codec.encode_chat([{"role": "user", "content": f"What is the capital of {country}?"}])
        verdict = await client.submit(request(country, prompt))
        assert verdict.admitted
        assert verdict.load.replica_id == "bf16-0"
    done = await until_done(client, 2)
    for country, capital in questions.items():
        assert capital in codec.decode(done[country].token_ids)
        assert done[country].finish_reason in ("stop", "length")
        told = done[country]
        assert told.queued_s is not None
        assert told.prefill_s is not None
        assert 0 <= told.queued_s < told.queued_s + told.prefill_s < 60


async def test_an_invalid_request_is_a_value_error(client: EngineProcess) -> None:
    with pytest.raises(ValueError, match="prompt of 3 tokens and max_tokens 4000"):
        await client.submit(request("x", [1, 2, 3], max_tokens=4000))


async def test_an_abort_comes_back_as_the_last_delta_and_frees(client: EngineProcess) -> None:
    await client.submit(request("x", [1, 2, 3], max_tokens=1900, ignore_eos=True))
    client.abort("x")
    client.abort("unknown")
    done = await until_done(client, 1)
    assert done["x"].finish_reason == "abort"
    assert client.load is not None
    assert client.load.kv_tokens_used == 0


async def test_a_submit_that_is_cancelled_aborts_its_request(client: EngineProcess) -> None:
    submitting = asyncio.create_task(client.submit(request("x", [1, 2, 3], max_tokens=1900, ignore_eos=True)))
    await asyncio.sleep(0)
    submitting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await submitting
    assert (await until_done(client, 1))["x"].finish_reason == "abort"


async def test_a_reader_that_lags_gets_all_in_fewer_messages(client: EngineProcess) -> None:
    verdict = await client.submit(request("x", [1, 2, 3], max_tokens=20, ignore_eos=True))
    async with asyncio.timeout(30):
        while client.load is None or client.load.generated_tokens < verdict.load.generated_tokens + 20:
            await asyncio.sleep(0.05)
        async for message in client.messages():
            if message.deltas:
                break
    assert len(message.deltas[0].token_ids) == 20
    assert message.deltas[0].finish_reason == "length"


async def test_an_idle_engine_sleeps_but_for_its_heartbeat(client: EngineProcess) -> None:
    process = psutil.Process(client.pid)
    before = process.cpu_times()
    messages: list[StepMessage] = []
    async with asyncio.timeout(10):
        async for message in client.messages():
            messages.append(message)
            if len(messages) == 3:
                break
    after = process.cpu_times()
    assert all(message.deltas == [] for message in messages)
    assert 1.5 < messages[2].load.measured_at_s - messages[0].load.measured_at_s < 4
    assert after.user + after.system - before.user - before.system < 0.2


async def test_an_interrupt_to_the_parents_group_does_not_reach_it(client: EngineProcess) -> None:
    assert os.getsid(client.pid) != os.getsid(0)
    os.kill(client.pid, signal.SIGINT)
    await client.submit(request("x", [1, 2, 3], max_tokens=2, ignore_eos=True))
    assert (await until_done(client, 1))["x"].finish_reason == "length"


async def test_a_dead_engine_is_told_to_everyone_who_waits() -> None:
    client = EngineProcess.start(spec())
    await client.ready()
    await client.submit(request("x", [1, 2, 3], max_tokens=1900, ignore_eos=True))
    os.kill(client.pid, signal.SIGSTOP)
    waiting = asyncio.create_task(client.submit(request("y", [1])))
    await asyncio.sleep(0.1)
    os.kill(client.pid, signal.SIGKILL)
    with pytest.raises(EngineDied, match="SIGKILL"):
        await waiting
    with pytest.raises(EngineDied, match="SIGKILL"):
        await until_done(client, 1)
    with pytest.raises(EngineDied):
        await client.submit(request("z", [1]))
    assert not client.alive
    await client.stop()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"checkpoint": "/nowhere"}, "/nowhere"),
        ({"kv_capacity_tokens": 2**40}, "(?i)memory|allocate"),
    ],
)
async def test_an_engine_that_cannot_start_says_why(changes: dict[str, object], reason: str) -> None:
    client = EngineProcess.start(spec(**changes))
    async with asyncio.timeout(60):
        with pytest.raises(EngineDied, match=reason):
            await client.ready()
        await client.stop()


async def test_stop_before_ready() -> None:
    client = EngineProcess.start(spec())
    await client.stop(timeout_s=0.2)
    assert not psutil.pid_exists(client.pid)


PARENT = """
import asyncio, sys
import msgspec
from cluster.engine_spec import EngineSpec
from engine.process import EngineProcess

async def main():
    client = EngineProcess.start(msgspec.json.decode(sys.argv[1], type=EngineSpec))
    await client.ready()
    print(client.pid, "torch" in sys.modules, flush=True)
    await asyncio.sleep(60)

asyncio.run(main())
"""


async def test_the_child_ends_when_its_parent_is_killed_and_the_parent_needs_no_torch() -> None:
    import msgspec

    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, msgspec.json.encode(spec())], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert parent.stdout is not None
    pid, has_torch = (await asyncio.to_thread(parent.stdout.readline)).split()
    assert has_torch == "False"
    assert psutil.pid_exists(int(pid))
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 5
    while psutil.pid_exists(int(pid)) and time.monotonic() < deadline:
        await asyncio.sleep(0.05)
    assert not psutil.pid_exists(int(pid))
