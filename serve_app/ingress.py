"""The ingress deployment: OpenAI's surface over HTTP, keys and limits; it knows no tensors and no answer's shape."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import msgspec
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from ray import serve
from ray.serve.handle import DeploymentHandle
from starlette.exceptions import HTTPException
from starlette.responses import Response

from autoscaling.serving_stats import Stats
from cluster.config import FleetConfig
from cluster.route_warm_up import warm_up_routes
from cluster.routing import SloRouter
from engine.text import TextCodec
from serve_app.auth import ConcurrencyLimit, Guard, KeyFileGuard, NoGuard
from serve_app.batches.job_environment import job_environment
from serve_app.batches.job_key import JobKeyGuard
from serve_app.batches.routes import BatchRoutes
from serve_app.batches.shelf import Shelves
from serve_app.batches.supervisor import Supervisor
from serve_app.blueprint import Blueprint
from serve_app.decision_feed import BoardReader, DecisionFeed
from serve_app.dispatch import Dispatcher
from serve_app.errors import ApiError, shutting_down, unknown_model
from serve_app.fleet_view import POLL_PERIOD_S, FleetView
from serve_app.gateway import Gateway
from serve_app.http_body import read_body
from serve_app.logs import request_log
from serve_app.metrics.ingress_metrics import IngressMetrics
from serve_app.metrics.meter import meter_of
from serve_app.prompts import Limits
from serve_app.protocol import Body, ChatBody, CompletionBody, parse
from serve_app.request_record import Observer, RequestRecord, recorded
from serve_app.tracing import request_tracer

log = logging.getLogger("ray.serve")

NUM_INGRESSES = 1
"""The router scales its own dispatches by it."""

Answerer = Callable[[Any, str | None, ExitStack, RequestRecord], Awaitable[Response]]


class Surface:
    """The routes, over whatever answers them."""

    def __init__(
        self,
        config: FleetConfig,
        gateway: Gateway,
        view: FleetView,
        dispatcher: Dispatcher,
        feed: DecisionFeed | None = None,
        batches: BatchRoutes | None = None,
        job_key: str | None = None,
        observers: Sequence[Observer] = (),
    ) -> None:
        """`feed`: of an autoscaled fleet; `batches`: where OpenAI's Batch API is to be had, `job_key`: its jobs';
        `observers` of generation requests."""
        self._config = config
        self._feed = feed
        self._batches = batches
        self._gateway = gateway
        self._view = view
        self._dispatcher = dispatcher
        keys_file = config.auth.keys_file
        guard = KeyFileGuard(Path(keys_file)) if keys_file else NoGuard()
        self.guard: Guard = guard if job_key is None else JobKeyGuard(guard, job_key)
        self._limit = ConcurrencyLimit(config.auth.max_concurrent_requests, "auth.max_concurrent_requests")
        self._background = ConcurrencyLimit(config.auth.max_background_requests, "auth.max_background_requests")
        self._created_s = int(time.time())
        self._draining = False
        self._observers = observers

    @property
    def in_flight(self) -> int:
        """Without background requests, for which no end is put off: who sent them sends them again."""
        return self._limit.in_flight

    def stats(self) -> Stats:
        """For the scaling policy: counters since the start, by class and variant."""
        return self._gateway.traffic.stats(
            waiting=self._dispatcher.waiting, queued=self._dispatcher.queued, draining=self._view.draining()
        )

    def drain(self) -> None:
        """Nothing new is taken; what runs goes on."""
        self._draining = True
        self._dispatcher.drain()

    def api(self) -> FastAPI:
        api = FastAPI(title="quantfleet", docs_url="/docs", redoc_url=None)
        api.add_exception_handler(ApiError, _api_error)
        api.add_exception_handler(HTTPException, _http_error)
        api.add_exception_handler(Exception, _bug)
        for path, answer, body in (
            ("/v1/chat/completions", self.chat, ChatBody),
            ("/v1/completions", self.complete, CompletionBody),
        ):
            schema = {"content": {"application/json": {"schema": body.model_json_schema()}}, "required": True}
            api.post(path, openapi_extra={"requestBody": schema}, response_model=None)(answer)
        for path, read in (
            ("/v1/models", self.models),
            ("/v1/models/{name}", self.model),
            ("/v1/fleet", self.fleet),
            ("/healthz", self.health),
            ("/health", self.health),
        ):
            api.get(path, response_model=None)(read)
        if self._batches is not None:
            self._batches.mount(api, self)
        return api

    async def chat(self, request: Request) -> Response:
        """OpenAI's chat completions."""
        return await self._answer(request, ChatBody, self._gateway.chat)

    async def complete(self, request: Request) -> Response:
        """OpenAI's completions."""
        return await self._answer(request, CompletionBody, self._gateway.complete)

    async def models(self, request: Request) -> Response:
        """The bare name, which asks the router, and each variant."""
        self.caller(request)
        return JSONResponse({"object": "list", "data": [self._model(name) for name in self._gateway.model_names]})

    async def model(self, request: Request, name: str) -> Response:
        """One model."""
        self.caller(request)
        if name not in self._gateway.model_names:
            raise unknown_model(name, self._gateway.model_names)
        return JSONResponse(self._model(name))

    async def fleet(self, request: Request) -> Response:
        """Variants, their replicas' loads, SLO classes and how often they were kept, the last scaling decision."""
        self.caller(request)
        return JSONResponse(
            {
                "model": self._config.model.name,
                "in_flight": self.in_flight,
                "background_in_flight": self._background.in_flight,
                "queued": self._dispatcher.waiting,
                "variants": [
                    {
                        "name": name,
                        "method": variant.method,
                        "quality": variant.quality,
                        "replicas": self._view.describe(name),
                        "serves": msgspec.to_builtins(self._gateway.served.get(name)),
                    }
                    for name, variant in self._config.variants.items()
                ],
                "slo_classes": self._gateway.slo_report(),
                "scaling": self._feed.describe() if self._feed is not None else None,
            }
        )

    async def health(self) -> Response:
        """200 when every variant that should serve does."""
        needed = [name for name in self._config.variants if self._config.replicas(name).min >= 1]
        missing = [name for name in needed if not self._view.loads(name)]
        if self._draining or missing:
            status = "draining" if self._draining else "starting"
            return JSONResponse({"status": status, "missing": missing}, status_code=503)
        return JSONResponse({"status": "ok"})

    def _model(self, name: str) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": self._created_s, "owned_by": "quantfleet"}

    def caller(self, request: Request) -> str:
        """ApiError 401 for nobody's."""
        return self.guard.caller(request.headers.get("authorization"))

    @contextmanager
    def entered(self, request: Request) -> Iterator[str]:
        """The caller, with one more request in flight; ApiError where none is taken."""
        caller = self.caller(request)
        if self._draining:
            raise shutting_down()
        with self._limit.held(caller):
            yield caller

    async def _answer(self, request: Request, kind: type[Body], answer: Answerer) -> Response:
        slo_header = request.headers.get("x-slo-class")
        with ExitStack() as ends:
            record = ends.enter_context(recorded(request, self._observers))
            place = ends.enter_context(ExitStack())
            caller = place.enter_context(self.entered(request))
            body = parse(kind, await read_body(request, self._config.http.max_body_bytes))
            if self._gateway.slo_of(body, slo_header).is_background:
                place.close()  # it takes the place of no other request
                place.enter_context(self._background.held(caller))
            return await answer(body, slo_header, ends, record)


class Ingress:
    """Serve's side of it. A call names no replica here: whatever is asked of one ingress is broadcast to all."""

    async def __init__(self, blueprint: Blueprint, handles: Mapping[str, DeploymentHandle], job_key: str) -> None:
        models = blueprint.cost_models()
        warm_up_routes(models, blueprint.limits, blueprint.config.slo_classes.values())
        router = SloRouter(models, blueprint.limits, load_period_s=POLL_PERIOD_S, num_ingresses=NUM_INGRESSES)
        self._view = FleetView(handles, router, ingress_id=uuid4().hex)
        self._dispatcher = Dispatcher(self._view)
        config = blueprint.config
        limits = Limits(
            context_tokens=blueprint.context_tokens,
            max_prompt_tokens=config.http.max_prompt_tokens or blueprint.context_tokens,
            vocab_size=blueprint.shape.vocab,
        )
        meter = meter_of(config)
        gateway = Gateway(
            config, TextCodec(blueprint.checkpoint), limits, self._dispatcher, blueprint.served_variants(), meter
        )
        feed = DecisionFeed(BoardReader(), router, config.autoscaling.interval_s) if config.is_autoscaled else None
        shelves = Shelves.of(config)
        self._batches = Supervisor(shelves=shelves, config=config, environment=job_environment(job_key))
        routes = BatchRoutes(shelves=shelves, limits=config.batches, wake=self._batches.wake)
        observers: list[Observer] = [*request_tracer(config.tracing), *request_log(config.logging)]
        self._surface = Surface(config, gateway, self._view, self._dispatcher, feed, routes, job_key, observers)
        self._view.start()
        self._batches.start()
        if feed is not None:
            feed.start()
        at_start = {name: plan.num_replicas for name, plan in blueprint.variants.items()}
        decision = feed.describe if feed else lambda: None
        metrics = IngressMetrics(meter, at_start, lambda: self._dispatcher.waiting, decision)
        self._telling = asyncio.create_task(metrics.tell_forever(), context=contextvars.Context())

    def __serve_build_asgi_app__(self) -> FastAPI:
        return self._surface.api()

    def record_autoscaling_stats(self) -> Stats:
        """Serve asks once a second, of an autoscaled fleet."""
        return self._surface.stats()

    async def drain(self) -> None:
        self._surface.drain()
        self._batches.stop()

    async def in_flight(self) -> int:
        return self._surface.in_flight

    async def end_all(self) -> None:
        """Whatever still runs is told so and ends."""
        self._view.fail_all("the fleet is shutting down")


def ingress_class() -> type:
    """Ingress as Serve wants it."""
    return serve.ingress()(Ingress)


async def _api_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return error.response()


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message = f"{request.method} {request.url.path}: {error.detail}"
    return ApiError(error.status_code, message, headers=error.headers).response()


async def _bug(request: Request, error: Exception) -> Response:
    log.error("%s %s failed", request.method, request.url.path, exc_info=error)
    return ApiError(500, "Internal error; the log says more", kind="server_error", code="internal_error").response()
