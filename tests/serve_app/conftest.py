"""An ingress over replicas of this process: the real surface, router and channel, an engine that follows a script."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import uvicorn
from ray.serve._private.common import DeploymentID
from ray.serve.exceptions import DeploymentUnavailableError

from cluster.accelerators import accelerator_named
from cluster.config import FleetConfig
from cluster.cost_model import CostModel
from cluster.load import Load
from cluster.model_shape import ModelShape
from cluster.prediction import ReplicaLimits
from cluster.request import GenerationRequest, TokenDelta, TokenLogprob, Verdict
from cluster.routing import SloRouter
from engine.checkpoint import ensure_checkpoint
from engine.text import TextCodec
from serve_app.batches.routes import BatchRoutes
from serve_app.batches.shelf import Shelves
from serve_app.dispatch import Dispatcher
from serve_app.fleet_view import FleetView
from serve_app.gateway import Gateway
from serve_app.ingress import Surface
from serve_app.outbox import Outbox
from serve_app.prompts import Limits
from serve_app.replica_gone import ReplicaGone
from serve_app.request_record import RequestRecord
from serve_app.wire import Answer, decode_submission, encode
from tests.serve_app.metrics.recorded import RecordingMeter

CONTEXT_TOKENS = 512


@dataclass
class ScriptedReplica:
    """Answers every request with `text`, a token a step, until max_tokens or the end; it can refuse and it can die."""

    replica_id: str
    variant: str
    codec: TextCodec
    text: str = "The sea is blue."
    step_s: float = 0.002
    refuses: bool = False
    dies_after: int | None = None
    """Tokens of a request after which the engine process is gone."""
    dead: bool = False
    stopping: bool = False
    """Serve routes nothing to it any more; what it streams goes on."""
    submitted: list[GenerationRequest] = field(default_factory=list)
    aborted: list[str] = field(default_factory=list)
    outboxes: dict[str, Outbox] = field(default_factory=dict)
    tasks: set[asyncio.Task[None]] = field(default_factory=set)

    def load_now(self) -> Load:
        return Load(
            replica_id=self.replica_id,
            variant=self.variant,
            measured_at_s=0.0,
            kv_tokens_capacity=8192,
            kv_tokens_used=16 * len(self.tasks),
        )

    async def submit(self, submission: bytes, replica_id: str) -> bytes:
        if self.dead:
            raise RuntimeError("the engine process ended")
        wanted = decode_submission(submission)
        if self.refuses:
            return encode(Answer(verdict=Verdict(admitted=False, reason="full", load=self.load_now())))
        outbox = self.outboxes.setdefault(wanted.ingress_id, Outbox(self.load_now))
        outbox.add([request.request_id for request in wanted.requests])
        for request in wanted.requests:
            self.submitted.append(request)
            task = asyncio.create_task(self._generate(request, outbox))
            self.tasks.add(task)
            task.add_done_callback(self.tasks.discard)
        return encode(Answer(verdict=Verdict(admitted=True, reason="admitted", load=self.load_now())))

    async def channel(self, ingress_id: str, replica_id: str) -> AsyncIterator[bytes]:
        async for frame in self.outboxes.setdefault(ingress_id, Outbox(self.load_now)).frames():
            yield frame

    async def abort(self, request_ids: list[str], replica_id: str) -> None:
        self.aborted += request_ids
        for outbox in self.outboxes.values():
            for request_id in request_ids:
                outbox.drop(request_id)

    async def load(self) -> bytes:
        if self.dead:
            raise RuntimeError("the engine process ended")
        return encode(self.load_now())

    async def _generate(self, request: GenerationRequest, outbox: Outbox) -> None:
        token_ids = self.codec.encode(self.text)
        for number in range(request.sampling.max_tokens):
            await asyncio.sleep(self.step_s)
            if request.request_id not in outbox.live:
                return
            if number == self.dies_after:
                self.dead = True
                outbox.fail("the engine process ended")
                return
            last = number + 1 == len(token_ids)
            outbox.put(self._delta(request, token_ids[number], number, last))
            if last:
                return

    def _delta(self, request: GenerationRequest, token_id: int, number: int, last: bool) -> TokenDelta:
        logprob = TokenLogprob(token_id=token_id, logprob=-0.5, top=[(token_id, -0.5), (1, -1.5)])
        prompt = [None, *(replace(logprob, token_id=token) for token in request.prompt_token_ids[1:])]
        asks_prompt = number == 0 and request.sampling.prompt_logprobs is not None
        at_end = number + 1 == request.sampling.max_tokens
        return TokenDelta(
            request_id=request.request_id,
            token_ids=[token_id],
            queued_s=0.25 * self.step_s if number == 0 else None,
            prefill_s=0.5 * self.step_s if number == 0 else None,
            logprobs=[logprob] if request.sampling.logprobs is not None else None,
            prompt_logprobs=prompt if asks_prompt else None,
            finish_reason="stop" if last else "length" if at_end else None,
        )


class LocalHandle:
    """A DeploymentHandle's face over replicas of this process."""

    def __init__(self, replicas: list[ScriptedReplica], method: str = "") -> None:
        self._replicas = replicas
        self._method = method

    def options(self, *, method_name: str, **_: Any) -> LocalHandle:
        return LocalHandle(self._replicas, method_name)

    def remote(self, *args: Any, replica_id: str) -> Any:
        running = {replica.replica_id: replica for replica in self._replicas if not replica.stopping}
        if replica_id not in running:
            return _gone(replica_id)
        answer = getattr(running[replica_id], self._method)(*args, replica_id)
        return LocalStream(answer) if self._method == "channel" else answer

    def broadcast(self, method: str) -> LocalBroadcast:
        return LocalBroadcast([getattr(replica, method) for replica in self._replicas if not replica.stopping])


async def _gone(replica_id: str) -> None:
    raise ReplicaGone(f"replica {replica_id} is not running")


class LocalStream:
    """A DeploymentResponseGenerator's face."""

    def __init__(self, frames: AsyncIterator[bytes]) -> None:
        self._frames = frames

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._frames

    def cancel(self) -> None:
        pass


@dataclass
class LocalBroadcast:
    calls: list[Callable[[], Any]]

    async def results_async(self, *, timeout_s: float, return_exceptions: bool) -> list[Any]:
        if not self.calls:
            raise DeploymentUnavailableError(DeploymentID(name="variant"))
        return await asyncio.gather(*(call() for call in self.calls), return_exceptions=return_exceptions)


@pytest.fixture(scope="session")
def checkpoint() -> Path:
    return ensure_checkpoint("embedded:smollm2-135m")


@pytest.fixture(scope="session")
def codec(checkpoint: Path) -> TextCodec:
    return TextCodec(checkpoint)


@pytest.fixture
def config() -> FleetConfig:
    return FleetConfig.of(
        {
            "model": {"name": "small", "source": "embedded:smollm2-135m"},
            "variants": {"bf16": {"method": "none"}, "nf4": {"method": "nf4", "quality": 0.95}},
            "slo_classes": {
                "best": {"min_quality": 1.0, "fallback": "reject"},
                "any": {"min_quality": 0.0, "fallback": "queue", "deadline_s": 0.5},
                "patient": {"min_quality": 0.0, "fallback": "queue", "deadline_s": 20},
            },
            "default_class": "any",
            "http": {"max_body_bytes": 20_000},
            "auth": {"max_concurrent_requests": 4},
            "batches": {"max_file_bytes": 200_000, "max_stored_bytes": 500_000},
        }
    )


@pytest.fixture
def replicas(codec: TextCodec) -> list[ScriptedReplica]:
    return [ScriptedReplica(replica_id=f"{name}-0", variant=name, codec=codec) for name in ("bf16", "nf4")]


@dataclass
class Running:
    """A surface that answers, with what stands behind it."""

    surface: Surface
    view: FleetView
    dispatcher: Dispatcher
    http: httpx.AsyncClient
    openai: openai.AsyncOpenAI
    shelves: Shelves
    """Of batches, which nothing works on."""
    direct: httpx.AsyncClient
    """Without a connection: a cancelled call cancels the route, as Serve does when a client goes away."""
    meter: RecordingMeter
    records: list[RequestRecord]
    """Of requests that have ended."""


@pytest.fixture
async def running(
    config: FleetConfig, checkpoint: Path, codec: TextCodec, replicas: list[ScriptedReplica], tmp_path: Path
) -> AsyncIterator[Running]:
    shape = ModelShape.from_hf_config(checkpoint / "config.json")
    host = accelerator_named("H100-80G")
    models = {name: CostModel(shape, variant, host) for name, variant in config.variants.items()}
    router = SloRouter(models, ReplicaLimits(token_budget=512, max_sequences=8, max_waiting=8))
    handles = {
        name: LocalHandle([replica for replica in replicas if replica.variant == name]) for name in config.variants
    }
    view = FleetView(handles, router, ingress_id="ingress")  # type: ignore[arg-type]
    dispatcher = Dispatcher(view)
    limits = Limits(context_tokens=CONTEXT_TOKENS, max_prompt_tokens=CONTEXT_TOKENS, vocab_size=shape.vocab)
    shelves = Shelves(folder=tmp_path / "batches")
    shelves.folder.mkdir()
    batches = BatchRoutes(shelves=shelves, limits=config.batches, wake=lambda: None)
    meter = RecordingMeter()
    gateway = Gateway(config, codec, limits, dispatcher, meter=meter)
    records: list[RequestRecord] = []
    surface = Surface(config, gateway, view, dispatcher, batches=batches, observers=[records.append])
    view.start()
    api = surface.api()
    server = uvicorn.Server(uvicorn.Config(api, port=0, log_level="error", lifespan="off"))
    serving = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    direct = httpx.AsyncClient(transport=httpx.ASGITransport(app=api), base_url=url)
    async with httpx.AsyncClient(base_url=url, timeout=10) as http, direct:
        client = openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="any", http_client=http, max_retries=0)
        while (await http.get("/healthz")).status_code != 200:
            await asyncio.sleep(0.01)
        yield Running(
            surface=surface,
            view=view,
            dispatcher=dispatcher,
            http=http,
            openai=client,
            direct=direct,
            shelves=shelves,
            meter=meter,
            records=records,
        )
    view.stop()
    server.should_exit = True
    await serving


@pytest.fixture
def keys_file(tmp_path: Path) -> Path:
    return tmp_path / "keys.jsonl"
