"""Background requests over HTTP: no demand, no attainment, a limit of their own, and answers in tokens for jobs."""

from __future__ import annotations

import asyncio
from typing import Any

from engine.text import TextCodec
from tests.serve_app.test_dispatch import eventually

ROW: dict[str, Any] = {"model": "small:nf4", "prompt": [5, 6, 7], "max_tokens": 3, "slo": "background"}


async def complete(running: Any, **changes: Any) -> Any:
    return await running.http.post("/v1/completions", json=ROW | changes)


async def test_it_is_no_demand_and_in_no_attainment(running: Any, replicas: Any) -> None:
    assert (await complete(running)).status_code == 200
    assert (await complete(running, slo=None)).status_code == 200
    stats = running.surface.stats()
    assert (stats["arrivals/any"], stats["named/nf4"], stats["queued/any"], stats["awaited/nf4"]) == (1, 1, 0, 0)
    fleet = (await running.http.get("/v1/fleet")).json()
    assert {name: told["offered"] for name, told in fleet["slo_classes"].items()} == {"any": 1, "best": 0, "patient": 0}
    assert [each.objective for replica in replicas for each in replica.submitted] == ["background", "latency"]


async def test_it_takes_no_other_requests_place(running: Any, replicas: Any) -> None:
    """The limit is 4 requests a caller; a fleet that ends does not wait for background ones."""
    for replica in replicas:
        replica.step_s = 0.05
    rows = [asyncio.create_task(complete(running, max_tokens=8)) for _ in range(6)]
    await eventually(lambda: sum(len(replica.submitted) for replica in replicas) == 6)
    assert running.surface.in_flight == running.dispatcher.waiting == 0
    assert (await running.http.get("/v1/fleet")).json()["background_in_flight"] == 6
    assert (await complete(running, slo="any")).status_code == 200
    assert [(await row).status_code for row in rows] == [200] * 6


async def test_without_room_it_is_refused_at_once(running: Any, replicas: Any) -> None:
    replicas[1].refuses = True
    answer = await complete(running)
    assert (answer.status_code, answer.json()["error"]["code"]) == (429, "fleet_full")
    assert int(answer.headers["Retry-After"]) >= 1
    assert running.surface.stats()["refused/any"] == 0


async def test_its_lost_replica_is_not_tried_again_here(running: Any, replicas: Any) -> None:
    replicas[1].dies_after = 0
    answer = await complete(running)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "replica_lost")
    assert len(replicas[1].submitted) == 1


async def test_answers_in_tokens(running: Any, codec: TextCodec, replicas: Any) -> None:
    (choice,) = (await complete(running, return_token_ids=True, logprobs=20)).json()["choices"]
    assert choice["token_ids"] == codec.encode(replicas[1].text)[:3]
    assert choice["text"] == codec.decode(choice["token_ids"])
    assert choice["token_logprobs"][0] == {
        "token_id": choice["token_ids"][0],
        "logprob": -0.5,
        "top": [[choice["token_ids"][0], -0.5], [1, -1.5]],
    }
    (plain,) = (await complete(running)).json()["choices"]
    assert set(plain) == {"index", "text", "logprobs", "finish_reason"}
    too_many = await complete(running, logprobs=6)
    assert "at most 5" in too_many.json()["error"]["message"]


async def test_an_online_request_brings_its_limit_to_the_engine(running: Any, replicas: Any) -> None:
    await complete(running, slo={"tpot_ms": 900, "min_quality": 0})
    assert [(each.objective, each.tpot_ms) for each in replicas[1].submitted] == [("latency", 900)]
