"""What is written down of a request, whatever way it ends."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.requests import Request

from cluster.config import FleetConfig
from serve_app.auth import create_key
from serve_app.errors import bad_parameter
from serve_app.request_record import RequestRecord, recorded

CHAT: dict[str, Any] = {"model": "small", "messages": [{"role": "user", "content": "hi"}]}


async def ended(running: Any) -> RequestRecord:
    """The one request's; a stream may end a moment after its last byte has come."""
    for _ in range(200):
        if running.records:
            break
        await asyncio.sleep(0.01)
    (record,) = running.records
    return record  # type: ignore[no-any-return]


def asked_for(headers: dict[str, str]) -> Request:
    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    return Request({"type": "http", "path": "/v1/completions", "headers": raw})


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer(running: Any, stream: bool) -> None:
    response = await running.http.post(
        "/v1/chat/completions", json=CHAT | {"stream": stream}, headers={"X-Request-Id": "id-1", "X-SLO-Class": "best"}
    )
    record = await ended(running)
    fields = record.fields()
    named = ("request_id", "path", "status", "stream", "slo_class", "variant", "replica_id", "output_tokens")
    assert [fields[name] for name in named] == [
        "id-1", "/v1/chat/completions", 200, stream, "best", response.headers["x-quantfleet-variant"], "bf16-0", 5,
    ]  # fmt: skip
    assert fields["prompt_tokens"] > 5
    assert fields["queued_ms"] == 0.5
    assert fields["prefill_ms"] == 1.0
    assert 0 < fields["routed_ms"] < fields["ttft_ms"] < fields["duration_ms"]
    assert fields["tpot_ms"] > 0
    assert "error" not in fields
    assert record.arrived_s <= record.asked_s < record.first_s < record.last_s <= record.ended_s


async def test_one_that_is_refused(running: Any, replicas: Any) -> None:
    for replica in replicas:
        replica.refuses = True
    response = await running.http.post("/v1/chat/completions", json=CHAT, headers={"X-SLO-Class": "best"})
    fields = (await ended(running)).fields()
    assert (response.status_code, fields["status"], fields["error"]) == (429, 429, "fleet_full")
    assert fields["slo_class"] == "best"
    assert "variant" not in fields
    assert "ttft_ms" not in fields


async def test_one_that_is_no_request(running: Any) -> None:
    await running.http.post("/v1/chat/completions", json=CHAT | {"model": "other"})
    fields = (await ended(running)).fields()
    assert (fields["status"], fields["error"]) == (404, "model_not_found")


@pytest.mark.parametrize(("stream", "status"), [(False, 503), (True, 200)])
async def test_one_whose_replica_is_lost(running: Any, replicas: Any, stream: bool, status: int) -> None:
    for replica in replicas:
        replica.dies_after = 2
    await running.http.post("/v1/chat/completions", json=CHAT | {"stream": stream})
    fields = (await ended(running)).fields()
    assert (fields["status"], fields["error"], fields["output_tokens"]) == (status, "replica_lost", 2)


async def test_a_client_that_leaves_before_the_answer(running: Any, replicas: Any) -> None:
    for replica in replicas:
        replica.step_s = 0.2
    task = asyncio.create_task(running.direct.post("/v1/chat/completions", json=CHAT))
    await asyncio.sleep(0.1)
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
    fields = (await ended(running)).fields()
    assert (fields["status"], fields["error"]) == (499, "client_closed")


async def test_a_client_that_leaves_a_stream(running: Any, replicas: Any) -> None:
    for replica in replicas:
        replica.step_s = 0.05
    async with running.http.stream("POST", "/v1/chat/completions", json=CHAT | {"stream": True}) as response:
        async for _ in response.aiter_lines():
            break
    fields = (await ended(running)).fields()
    assert (fields["status"], fields["error"]) == (200, "client_closed")
    assert 0 < fields["output_tokens"] < 5


async def test_other_routes_leave_none(running: Any) -> None:
    for path in ("/v1/models", "/v1/fleet", "/healthz"):
        assert (await running.http.get(path)).status_code == 200
    assert running.records == []


class TestBackground:
    """It gives the place of an online request back, and is one record all the same."""

    async def test_it_is_recorded_once(self, running: Any) -> None:
        await running.http.post("/v1/chat/completions", json=CHAT | {"slo": {"objective": "background"}})
        record = await ended(running)
        assert record.output_tokens == 5
        assert running.surface.in_flight == 0


class TestKeys:
    @pytest.fixture
    def key(self, keys_file: Path) -> str:
        return create_key(keys_file, "ann")

    @pytest.fixture
    def config(self, config: FleetConfig, keys_file: Path, key: str) -> FleetConfig:
        data = config.model_dump(by_alias=True, exclude_unset=True)
        return FleetConfig.of(data | {"auth": {"keys_file": str(keys_file)}})

    async def test_no_key_is_written_down(self, running: Any, key: str) -> None:
        async with httpx.AsyncClient(base_url=running.http.base_url) as http:
            for sent in (key, "qf-wrong"):
                await http.post("/v1/chat/completions", json=CHAT, headers={"Authorization": f"Bearer {sent}"})
        right, wrong = running.records
        assert (right.status, wrong.status, wrong.error) == (200, 401, "invalid_api_key")
        assert "qf-" not in repr(running.records)


def test_without_an_id_it_makes_one_and_a_long_one_is_cut() -> None:
    first, second = (RequestRecord.of(asked_for({})).request_id for _ in range(2))
    assert first != second
    assert RequestRecord.of(asked_for({"x-request-id": "a" * 5000})).request_id == "a" * 128


def test_an_observer_that_fails_fails_no_request(caplog: pytest.LogCaptureFixture) -> None:
    seen: list[RequestRecord] = []

    def fails(_: RequestRecord) -> None:
        raise OSError("disk full")

    with recorded(asked_for({}), [fails, seen.append]):
        pass
    assert len(seen) == 1


def test_errors_pass_through() -> None:
    seen: list[RequestRecord] = []
    for error in (bad_parameter("n", "no"), ZeroDivisionError()):
        with pytest.raises(type(error)), recorded(asked_for({}), [seen.append]):
            raise error
    assert [(record.status, record.error) for record in seen] == [
        (400, "invalid_request_error"),
        (500, "internal_error"),
    ]
