"""A job's rows in a fleet: refusals, a fleet that goes and comes, lost replicas, other files than before."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from batch_jobs import fleet_engine
from batch_jobs.engine_identity import ServedVariant
from batch_jobs.fleet_engine import FleetEngine
from batch_jobs.fleet_requests import request_body
from batch_jobs.fleet_share import FleetAddress, FleetShare
from batch_jobs.fleet_window import FleetWindow
from cluster.engine_spec import EngineSpec
from cluster.errors import UserError
from cluster.request import GenerationRequest, SamplingParams, TokenDelta, TokenLogprob
from cluster.variants import Variant
from engine.openai_bodies import CompletionBody

Answer = Callable[[dict[str, Any]], Response]


def answered(body: dict[str, Any], fingerprint: str = "same") -> Response:
    """Its prompt, backwards."""
    choice = {"token_ids": body["prompt"][::-1], "token_logprobs": [], "finish_reason": "length"}
    return JSONResponse({"choices": [choice]}, headers={"X-Quantfleet-Fingerprint": fingerprint})


def refused(status: int, code: str, **headers: str) -> Response:
    error = {"message": f"said {code}", "type": "any", "param": None, "code": code}
    return JSONResponse({"error": error}, status_code=status, headers=headers)


@dataclass
class Fleet:
    """An HTTP server whose next answers are said beforehand; after those it answers well."""

    script: list[Answer] = field(default_factory=list)
    poison: int = -1
    """A token whose row ends its replica, and with it all that runs there."""
    bodies: list[dict[str, Any]] = field(default_factory=list)
    running: dict[int, asyncio.Event] = field(default_factory=dict)
    most_running: int = 0

    async def complete(self, request: Request) -> Response:
        body = json.loads(await request.body())
        self.bodies.append(body)
        if self.script:
            return self.script.pop(0)(body)
        lost = self.running[id(body)] = asyncio.Event()
        self.most_running = max(self.most_running, len(self.running))
        try:
            await asyncio.sleep(0.02)
            if self.poison in body["prompt"]:
                for each in self.running.values():
                    each.set()
            return refused(503, "replica_lost") if lost.is_set() else answered(body)
        finally:
            del self.running[id(body)]


@asynccontextmanager
async def serving(fleet: Fleet, port: int = 0) -> AsyncIterator[str]:
    app = Starlette(routes=[Route("/v1/completions", fleet.complete, methods=["POST"])])
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="error", lifespan="off"))
    task = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    await task


def share_of(url: str) -> FleetShare:
    spec = EngineSpec(
        replica_id="", checkpoint="", variant=Variant(name="int8"), kv_capacity_tokens=4096, max_context=512
    )
    served = ServedVariant(spec=spec, settings={}, fingerprint="same")
    return FleetShare(address=FleetAddress.of(url), model="small:int8", served=served, num_replicas=1)


def row(name: str, *prompt: int, **sampling: Any) -> GenerationRequest:
    return GenerationRequest(request_id=name, prompt_token_ids=list(prompt), sampling=SamplingParams(**sampling))


async def ended(engine: FleetEngine, rows: list[GenerationRequest]) -> dict[str, TokenDelta]:
    found: dict[str, TokenDelta] = {}
    for each in rows:
        await engine.submit(each)
    async for message in engine.messages():
        found |= {delta.request_id: delta for delta in message.deltas}
        if len(found) == len(rows):
            break
    await engine.stop()
    return found


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet_engine, "RETRY_S", 0.05)


async def test_refusals_are_waits_and_bad_rows_are_errors_of_their_own() -> None:
    script: list[Answer] = [
        lambda _: refused(429, "fleet_full", **{"Retry-After": "0.1"}),
        lambda _: refused(503, "shutting_down"),
        lambda _: PlainTextResponse("no server is available", status_code=500),
        lambda _: refused(400, "context_length_exceeded"),
    ]
    fleet = Fleet(script=script)
    async with serving(fleet) as url:
        found = await ended(FleetEngine(share_of(url), 1), [row("a", 1, 2, 3), row("b", 4, 5)])
    errors = {name: delta.error for name, delta in found.items() if delta.error}
    assert list(errors.values()) == ["said context_length_exceeded"]
    (good,) = (delta for delta in found.values() if delta.error is None)
    assert good.token_ids in ([3, 2, 1], [5, 4])
    assert all(body["slo"] == "background" and body["model"] == "small:int8" for body in fleet.bodies)


async def test_a_row_that_ends_replicas_is_the_only_error() -> None:
    fleet = Fleet(poison=13)
    rows = [row(str(number), number, number) for number in range(40)]
    async with serving(fleet) as url:
        found = await ended(FleetEngine(share_of(url), 40), rows)
    failed = {name: delta.error for name, delta in found.items() if delta.error}
    assert failed == {"13": "its replica ended 3 times with it (said replica_lost)"}
    assert Counter(body["prompt"][0] for body in fleet.bodies)[13] == 3


async def test_a_fleet_that_goes_and_comes_back_is_waited_for() -> None:
    fleet = Fleet()
    async with serving(fleet) as url:
        engine = FleetEngine(share_of(url), 4)
        port = int(url.rsplit(":", 1)[1])
    running = asyncio.create_task(ended(engine, [row(str(number), number) for number in range(6)]))
    await asyncio.sleep(0.3)
    assert not running.done()
    async with serving(fleet, port):
        found = await running
    assert {name: delta.token_ids for name, delta in found.items()} == {str(number): [number] for number in range(6)}


async def test_one_that_stays_away_ends_the_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet_engine, "AWAY_S", 0.2)
    with pytest.raises(UserError, match=r"no fleet has answered for 0 s .*; the same command goes on"):
        await ended(FleetEngine(share_of("http://127.0.0.1:9"), 4), [row("a", 1)])


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda body: answered(body, "another"), "from other files, settings or code than when the job began"),
        (lambda _: refused(401, "invalid_api_key"), "QUANTFLEET_API_KEY: .* does not take it any more"),
        (lambda _: refused(404, "model_not_found"), "the job began with small:int8 there"),
    ],
)
async def test_what_a_job_cannot_go_on_with(answer: Answer, words: str) -> None:
    async with serving(Fleet(script=[answer])) as url:
        engine = FleetEngine(share_of(url), 1)
        with pytest.raises(UserError, match=words):
            await ended(engine, [row("a", 1)])
        await engine.stop()


async def test_no_more_in_flight_than_is_taken() -> None:
    fleet = Fleet()
    async with serving(fleet) as url:
        await ended(FleetEngine(share_of(url), 3), [row(str(number), number) for number in range(12)])
    assert fleet.most_running == 3


async def test_the_window_shrinks_once_for_refusals_together_and_grows_again() -> None:
    window = FleetWindow(16)
    for _ in range(16):
        await window.enter()
    for _ in range(8):
        await window.leave(refused=True)
    assert window.limit == 12
    for _ in range(8):
        await window.leave(refused=False)
    assert 12.6 < window.limit < 12.7
    blocked = [asyncio.create_task(window.enter()) for _ in range(14)]
    await asyncio.sleep(0.01)
    assert sum(task.done() for task in blocked) == 13
    for task in blocked:
        task.cancel()


def test_every_sampling_parameter_arrives(tmp_path: Path) -> None:
    sampling = SamplingParams(
        max_tokens=7,
        min_tokens=2,
        temperature=0.5,
        top_p=0.0,
        top_k=3,
        min_p=0.1,
        repetition_penalty=1.1,
        presence_penalty=0.2,
        frequency_penalty=0.3,
        logit_bias={5: -1.0},
        seed=2**62,
        stop=("x",),
        ignore_eos=True,
        logprobs=20,
    )
    request = GenerationRequest(request_id="a", prompt_token_ids=[1, 2], sampling=sampling)
    body = CompletionBody.model_validate_json(json.dumps(request_body(request, "small:int8")))
    assert body.prompt == [[1, 2]]
    assert body.sampling(7, body.logprobs, body.seed) == replace(sampling, top_p=1e-9)


def test_logprobs_come_back_by_token_id() -> None:
    item = TokenLogprob(token_id=4, logprob=-0.5, top=[(4, -0.5), (9, -1.5)])
    told = {"token_id": 4, "logprob": -0.5, "top": [[4, -0.5], [9, -1.5]]}
    choice = {"token_ids": [4], "token_logprobs": [told], "finish_reason": "stop"}
    assert fleet_engine.finished_row({"choices": [choice]}).logprobs == [item]
