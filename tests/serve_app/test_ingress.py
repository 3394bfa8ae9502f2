"""The surface around the answers: keys, limits, errors of every kind in OpenAI's shape, models and health."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import openai
import pytest

from serve_app.auth import KeyFileGuard, create_key

HI: Any = [{"role": "user", "content": "hi"}]


def error_of(response: Any) -> dict[str, Any]:
    error: dict[str, Any] = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


async def test_models(running: Any) -> None:
    models = (await running.openai.models.list()).data
    assert [model.id for model in models] == ["small", "small:bf16", "small:nf4"]
    assert (await running.openai.models.retrieve("small:nf4")).id == "small:nf4"
    with pytest.raises(openai.NotFoundError) as caught:
        await running.openai.models.retrieve("small:int3")
    assert caught.value.code == "model_not_found"


async def test_health_has_two_names_and_needs_no_key(running: Any) -> None:
    for path in ("/healthz", "/health"):
        assert (await running.http.get(path)).json() == {"status": "ok"}


@pytest.mark.parametrize(
    ("method", "path", "status"), [("GET", "/v2/nothing", 404), ("GET", "/v1/completions", 405), ("DELETE", "/", 404)]
)
async def test_unknown_ways_are_told_in_openais_shape(running: Any, method: str, path: str, status: int) -> None:
    response = await running.http.request(method, path)
    assert response.status_code == status
    assert path in error_of(response)["message"]


@pytest.mark.parametrize("content", [b"{", b'{"model": "\xff"}', b"", b"[]"])
async def test_a_body_that_is_no_json_object(running: Any, content: bytes) -> None:
    for path in ("/v1/chat/completions", "/v1/completions"):
        response = await running.http.post(path, content=content)
        assert response.status_code == 400
        error_of(response)


@pytest.mark.parametrize("size", [20_001, 100_000, 400_000])
async def test_a_body_that_is_too_large(running: Any, size: int) -> None:
    response = await running.http.post("/v1/chat/completions", content=b"x" * size)
    assert response.status_code == 413
    assert "20000" in error_of(response)["message"]

    async def chunks() -> Any:
        yield b"x" * size

    response = await running.http.post("/v1/chat/completions", content=chunks())
    assert response.status_code == 413


async def test_a_key_is_asked_for_where_there_are_keys(running: Any, keys_file: Path) -> None:
    key = create_key(keys_file, "ann")
    running.surface.guard = KeyFileGuard(keys_file)
    body = {"model": "small", "messages": HI}
    for path in ("/v1/models", "/v1/models/small", "/v1/fleet"):
        response = await running.http.get(path)
        assert response.status_code == 401
        assert error_of(response)["code"] == "invalid_api_key"
    assert (await running.http.post("/v1/chat/completions", json=body)).status_code == 401
    wrong = {"Authorization": "Bearer wrong"}
    assert (await running.http.post("/v1/completions", content=b"{", headers=wrong)).status_code == 401
    right = {"Authorization": f"Bearer {key}"}
    assert (await running.http.post("/v1/chat/completions", json=body, headers=right)).status_code == 200
    assert (await running.http.get("/v1/fleet", headers=right)).status_code == 200
    assert (await running.http.get("/healthz")).status_code == 200


async def test_a_key_has_so_many_requests_at_once(running: Any, replicas: Any) -> None:
    for replica in replicas:
        replica.step_s = 0.05
    body = {"model": "small", "messages": HI}
    requests = [running.http.post("/v1/chat/completions", json=body) for _ in range(6)]
    statuses = sorted(response.status_code for response in await asyncio.gather(*requests))
    assert statuses == [200] * 4 + [429] * 2
    assert (await running.http.post("/v1/chat/completions", json=body)).status_code == 200


async def test_the_documentation_is_served(running: Any) -> None:
    schema = (await running.http.get("/openapi.json")).json()
    assert "/v1/chat/completions" in schema["paths"]
    assert "messages" in str(schema["paths"]["/v1/chat/completions"]["post"]["requestBody"])


async def test_a_bug_is_a_500_in_openais_shape(running: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: str) -> list[Any]:
        raise RuntimeError("a bug")

    monkeypatch.setattr(running.view, "describe", broken)
    response = await running.http.get("/v1/fleet")
    assert response.status_code == 500
    assert error_of(response)["code"] == "internal_error"
