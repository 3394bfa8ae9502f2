"""Clients that go away, engines that are killed, and the end of the fleet; this file's last test ends it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from typing import Any

import httpx
import openai
import psutil
import pytest

pytestmark = pytest.mark.ray

MODEL = "smollm2-135m"
LONG: Any = {"prompt": "Once upon a time", "max_tokens": 600, "extra_body": {"ignore_eos": True}}


def test_a_client_that_leaves_a_stream_frees_its_blocks(fleet: Any, client: openai.OpenAI) -> None:
    stream = client.completions.create(model=f"{MODEL}:bf16", stream=True, **LONG)
    for _ in range(3):
        next(stream)
    fleet.eventually(lambda: fleet.replica("bf16")["kv_tokens_used"] > 0, 5)
    stream.close()
    fleet.eventually(lambda: fleet.replica("bf16")["kv_tokens_used"] == 0, 3)
    assert fleet.replica("bf16")["generated_tokens"] < 500


def test_a_client_that_leaves_a_whole_answer_frees_its_blocks(fleet: Any) -> None:
    body = {"model": f"{MODEL}:bf16", "prompt": "Once upon a time", "max_tokens": 600, "ignore_eos": True, "n": 2}
    before = fleet.replica("bf16")["generated_tokens"]
    with pytest.raises(httpx.TimeoutException):
        httpx.post(f"{fleet.base_url}/completions", json=body, timeout=1.5)
    fleet.eventually(lambda: fleet.replica("bf16")["kv_tokens_used"] == 0, 3)
    assert fleet.replica("bf16")["generated_tokens"] - before < 1000
    fleet.eventually(lambda: fleet.get("/v1/fleet").json()["in_flight"] == 0, 3)


def test_an_engine_killed_in_a_stream_is_an_error_event(fleet: Any, client: openai.OpenAI) -> None:
    stream = client.completions.create(model=f"{MODEL}:nf4", stream=True, **LONG)
    next(stream)
    fleet.engines()["nf4"].kill()
    with pytest.raises(openai.APIError, match="lost"):
        for _ in stream:
            pass
    # The class queues: the request waits for the new replica, which Serve starts.
    answer = client.completions.create(model=f"{MODEL}:nf4", prompt="Hello", max_tokens=2)
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 2
    fleet.wait_healthy()


def test_an_engine_killed_before_the_first_token_costs_only_time(fleet: Any, client: openai.OpenAI) -> None:
    engines = fleet.engines()
    for engine in engines.values():
        engine.suspend()
    answers: list[Any] = []
    ask = {"model": MODEL, "prompt": "Hello", "max_tokens": 2}
    asking = threading.Thread(target=lambda: answers.append(client.completions.with_raw_response.create(**ask)))  # type: ignore[call-overload]
    asking.start()
    fleet.eventually(lambda: any(fleet.replica(variant)["in_flight"] for variant in engines), 5)
    first = next(variant for variant in engines if fleet.replica(variant)["in_flight"])
    engines[first].kill()
    for variant, engine in engines.items():
        if variant != first:
            engine.resume()
    asking.join(60)
    assert answers[0].status_code == 200
    assert answers[0].headers["x-quantfleet-variant"] != first
    assert first in fleet.get("/healthz").json().get("missing", [])
    fleet.wait_healthy()


def test_a_port_in_use_is_one_line(fleet: Any) -> None:
    port = fleet.base_url.removesuffix("/v1").rpartition(":")[2]
    started_s = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "quantfleet", "serve", "--port", port], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr.strip().count("\n") == 0
    assert f"127.0.0.1:{port}" in done.stderr
    assert time.monotonic() - started_s < 15


def test_one_sigint_to_the_group_drains_and_leaves_no_process(fleet: Any, client: openai.OpenAI) -> None:
    processes = psutil.Process(fleet.process.pid).children(recursive=True)
    assert len(processes) > 10
    ask: Any = {"prompt": "Once", "stream": True, "extra_body": {"ignore_eos": True}}
    short = client.completions.create(model=f"{MODEL}:int8", max_tokens=40, **ask)
    long = [client.completions.create(model=f"{MODEL}:bf16", max_tokens=1000, **ask) for _ in range(3)]
    for stream in (short, *long):
        next(stream)
    started_s = time.monotonic()
    os.killpg(fleet.process.pid, signal.SIGINT)
    assert end_of(short) == "length"
    # What has not ended after 15 s is told why it ends.
    for end in map(end_of, long):
        assert end == "length" or "shutting down" in end
    assert fleet.process.wait(25) == 0
    assert time.monotonic() - started_s < 25
    left = []
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            left.append((process.pid, process.name(), process.status()))
    assert left == []


def end_of(stream: Any) -> str:
    """Its finish reason, or the error that ended it."""
    try:
        return str(list(stream)[-1].choices[0].finish_reason)
    except openai.APIError as error:
        return error.message
