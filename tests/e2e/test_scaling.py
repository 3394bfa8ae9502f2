"""The scaling policy in a running fleet: a burst makes it go 1 -> 2 -> 1, and no request is lost or cut."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

pytestmark = pytest.mark.ray

FLEET_YAML = """
model: {name: smollm2-135m, source: embedded:smollm2-135m}
variants: {int8: {method: int8, quality: 0.97}}
engine: {max_context: 1024, kv_capacity_tokens: 8192, num_threads: 1, max_sequences: 1}
slo_classes: {standard: {fallback: queue, deadline_s: 600}}
default_class: standard
autoscaling:
  {replicas: {int8: {min: 1, max: 2}}, headroom: 0.8, interval_s: 1, level_s: 1, hold_s: 2, idle_s: 1000, log: LOG}
http: {port: 0}
auth: {max_concurrent_requests: 1000}
"""
RATE_PER_S = 1.5
TOKENS = 16
"""24 tokens a second: with a headroom of 0.8 more than one replica of one sequence at a time, and little real work."""
LONG_STREAMS, LONG_TOKENS = 6, 400
"""These outlast the decision to shrink."""
SCALED_TIMEOUT_S = 120.0


class Traffic:
    """Streams sent and what became of each."""

    def __init__(self, base_url: str) -> None:
        self._url = f"{base_url}/completions"
        self._http = httpx.AsyncClient(timeout=180, limits=httpx.Limits(max_connections=None))
        self.streams: list[asyncio.Task[tuple[str | None, int, bool]]] = []

    def send(self, max_tokens: int) -> None:
        self.streams.append(asyncio.create_task(self._stream(max_tokens)))

    async def keep_sending(self) -> None:
        """Until it is cancelled."""
        while True:
            self.send(TOKENS)
            await asyncio.sleep(1 / RATE_PER_S)

    async def ends(self) -> list[tuple[str | None, int, bool]]:
        """Of each stream the finish reason, its tokens, and whether it was ended in order."""
        found = await asyncio.gather(*self.streams)
        await self._http.aclose()
        return found

    async def _stream(self, max_tokens: int) -> tuple[str | None, int, bool]:
        body: dict[str, Any] = {"model": "smollm2-135m", "prompt": "Once upon a time", "max_tokens": max_tokens}
        body |= {"ignore_eos": True, "stream": True, "stream_options": {"include_usage": True}}
        reason, tokens, done = None, 0, False
        async with self._http.stream("POST", self._url, json=body) as response:
            assert response.status_code == 200, await response.aread()
            async for line in response.aiter_lines():
                if not line or (done := line == "data: [DONE]"):
                    continue
                event = json.loads(line.removeprefix("data: "))
                assert "error" not in event, event
                tokens = (event.get("usage") or {}).get("completion_tokens", tokens)
                reason = next((choice["finish_reason"] for choice in event["choices"]), None) or reason
        return reason, tokens, done


def replicas(fleet: Any) -> list[dict[str, Any]]:
    """Of the one variant."""
    return list(fleet.get("/v1/fleet").json()["variants"][0]["replicas"])


async def eventually(condition: Any) -> None:
    deadline_s = time.monotonic() + SCALED_TIMEOUT_S
    while not await asyncio.to_thread(condition):
        assert time.monotonic() < deadline_s, f"it did not happen within {SCALED_TIMEOUT_S} s"
        await asyncio.sleep(0.2)


def test_a_burst_makes_the_fleet_grow_and_shrink_and_cuts_no_stream(serve_of: Any, tmp_path: Path) -> None:
    log = tmp_path / "decisions.jsonl"
    with serve_of(FLEET_YAML.replace("LOG", str(log)), tmp_path) as fleet:
        processes = psutil.Process(fleet.process.pid).children(recursive=True)
        assert f"explain {log}" in fleet.log.read_text()
        asyncio.run(burst(fleet))
        scaling = fleet.get("/v1/fleet").json()["scaling"]
        assert scaling["replicas"] == {"int8": 1}
        assert scaling["log"] == str(log)
        fleet.process.terminate()
        assert fleet.process.wait(30) == 0
    said = explain(log)
    assert any(" 1 int8 running -> 2 int8  grows" in line for line in said)
    assert any(" 2 int8 running -> 1 int8  shrinks" in line for line in said)
    assert "all the same again" in explain(log, "--replay")[0]
    assert [process for process in processes if alive(process)] == []


async def burst(fleet: Any) -> None:
    traffic = Traffic(fleet.base_url)
    assert len(replicas(fleet)) == 1
    sending = asyncio.create_task(traffic.keep_sending())
    await eventually(lambda: len(replicas(fleet)) == 2)
    sending.cancel()
    for _ in range(LONG_STREAMS):
        traffic.send(LONG_TOKENS)
    await eventually(lambda: [replica["state"] for replica in replicas(fleet)].count("ready") == 1)
    ends = await traffic.ends()
    assert all(end in (("length", TOKENS, True), ("length", LONG_TOKENS, True)) for end in ends), ends
    await eventually(lambda: [replica["state"] for replica in replicas(fleet)] == ["ready"])


def explain(log: Path, *options: str) -> list[str]:
    command = [sys.executable, "-m", "quantfleet", "explain", str(log), *options]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()


def alive(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):
        return process.status() != psutil.STATUS_ZOMBIE
    return False
