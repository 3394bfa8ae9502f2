"""From a checked body to a response, for both endpoints: prompt, route, answer; it knows no HTTP request and no key."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from http import HTTPStatus
from typing import Any
from uuid import uuid4

import msgspec
from starlette.responses import Response

from autoscaling.serving_stats import TrafficCounters
from batch_jobs.engine_identity import ServedVariant
from cluster.config import FleetConfig
from cluster.errors import UserError
from cluster.output_lengths import OutputLengths
from cluster.prefix_hash import prefix_hashes
from cluster.request import GenerationRequest
from cluster.slo import Attainment, SloLimits, Tally
from engine.text import TextCodec
from serve_app.answer import Answer
from serve_app.dispatch import Dispatcher, Work
from serve_app.errors import ApiError, bad_parameter, unknown_model
from serve_app.formats import ChatFormat, CompletionFormat, Format, Head
from serve_app.metrics.meter import Meter, NoMeter
from serve_app.metrics.request_metrics import RequestMetrics
from serve_app.output import Output
from serve_app.prompts import (
    DEFAULT_CHAT_TOKENS,
    DEFAULT_COMPLETION_TOKENS,
    Limits,
    Prompt,
    chat_prompt,
    check_tokens,
    completion_prompts,
    engine_requests,
    max_tokens,
)
from serve_app.protocol import ChatBody, CompletionBody, GenerationBody
from serve_app.request_record import RequestRecord
from serve_app.streaming import EventStream, events


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What a request asks of the router, known before its prompt is."""

    variant: str | None
    slo: SloLimits
    arrived_s: float
    record: RequestRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A body with its prompts in tokens."""

    body: GenerationBody
    wish: Wish
    prompts: Sequence[Prompt]
    requests: list[GenerationRequest]
    bounded: bool
    """Whether the client bounds the answer, or the default does."""

    @property
    def prompt_tokens(self) -> int:
        return sum(len(prompt.token_ids) for prompt in self.prompts)

    def work(self, lengths: OutputLengths, prefix: tuple[int, ...]) -> Work:
        """Without a bound it is expected to be as long as answers of its class are."""
        bound = self.requests[0].sampling.max_tokens
        return Work(
            requests=self.requests,
            variant=self.wish.variant,
            slo=self.wish.slo,
            prompt_tokens=self.prompt_tokens,
            expected_output_tokens=bound if self.bounded else min(bound, lengths.expected(self.wish.slo.name)),
            arrived_s=self.wish.arrived_s,
            prefix=prefix,
        )


class Gateway:
    """Every method takes `ends`: closed by the caller when the request is through, or handed on to its stream."""

    def __init__(
        self,
        config: FleetConfig,
        codec: TextCodec,
        limits: Limits,
        dispatcher: Dispatcher,
        served: Mapping[str, ServedVariant] | None = None,
        meter: Meter | None = None,
    ) -> None:
        """`served`: by variant, for jobs that run on the fleet; without a meter nothing is recorded."""
        self.served = served or {}
        shares = {name: self.served[name].spec.share if name in self.served else 1.0 for name in config.variants}
        self._metrics = RequestMetrics(meter or NoMeter(), config.online_classes, shares)
        self.attainment = Attainment()
        self.traffic = TrafficCounters(config.online_classes, config.variants, config.default_class)
        self.output_lengths = OutputLengths()
        self._config = config
        self._variants = config.variants
        self._codec = codec
        self._limits = limits
        self._dispatcher = dispatcher

    @property
    def model_names(self) -> list[str]:
        """The bare name asks the router; the others name a variant."""
        name = self._config.model.name
        return [name, *(f"{name}:{variant}" for variant in self._variants)]

    def slo_report(self) -> dict[str, Any]:
        """Every class with its limits and how often it was kept, for GET /v1/fleet."""
        tallies = self.attainment.by_class
        report = {}
        for name, limits in self._config.online_classes.items():
            tally = tallies.get(name, Tally())
            counts = {"offered": tally.offered, "met": tally.met, "attainment": round(tally.attainment, 4)}
            counts["expected_output_tokens"] = self.output_lengths.expected(name)
            report[name] = asdict(limits) | counts
        return report

    async def chat(self, body: ChatBody, slo_header: str | None, ends: ExitStack, record: RequestRecord) -> Response:
        wish = self._wish(body, slo_header, record)
        prompt = await chat_prompt(body, self._codec, self._limits)
        asked = self._ask(body, wish, [prompt], DEFAULT_CHAT_TOKENS, body.num_logprobs)
        answer = await self._begin(asked, ends)
        shape = ChatFormat(self._head("chatcmpl", body, answer), self._codec, with_logprobs=bool(body.logprobs))
        return await self._respond(asked, answer, shape, ends)

    async def complete(
        self, body: CompletionBody, slo_header: str | None, ends: ExitStack, record: RequestRecord
    ) -> Response:
        wish = self._wish(body, slo_header, record)
        prompts = await completion_prompts(body, self._codec, self._limits)
        asked = self._ask(body, wish, prompts, DEFAULT_COMPLETION_TOKENS, body.logprobs)
        answer = await self._begin(asked, ends)
        shape = CompletionFormat(
            self._head("cmpl", body, answer),
            self._codec,
            [prompt for prompt in prompts for _ in range(body.n)],
            echo=bool(body.echo),
            with_logprobs=body.logprobs is not None,
            with_token_ids=body.return_token_ids,
        )
        return await self._respond(asked, answer, shape, ends)

    def slo_of(self, body: GenerationBody, slo_header: str | None) -> SloLimits:
        """Of the SLO the body's word counts before the header's; ApiError for what is none."""
        wish: Any = slo_header if body.slo is None else body.slo
        try:
            return self._config.slo.resolve(wish)
        except UserError as error:
            raise bad_parameter("slo", str(error)) from None

    def _wish(self, body: GenerationBody, slo_header: str | None, record: RequestRecord) -> Wish:
        slo, now_s = self.slo_of(body, slo_header), time.monotonic()
        record.asked(slo.name, now_s, is_stream=bool(body.stream))
        if self._config.logging.prompts:
            record.prompt = body.model_dump(mode="json", include={"messages", "prompt"}, exclude_none=True)
        return Wish(variant=self._variant(body.model), slo=slo, arrived_s=now_s, record=record)

    def _variant(self, model: str) -> str | None:
        name, colon, variant = model.partition(":")
        if name != self._config.model.name or (colon and variant not in self._variants):
            raise unknown_model(model, self.model_names)
        return variant or None

    def _ask(
        self, body: GenerationBody, wish: Wish, prompts: Sequence[Prompt], default: int, logprobs: int | None
    ) -> Asked:
        tokens = max_tokens(body.wanted_tokens, default, prompts, self._limits)
        check_tokens(body, tokens, self._limits)
        requests = engine_requests(body, prompts, tokens, logprobs)
        return Asked(body=body, wish=wish, prompts=prompts, requests=requests, bounded=body.wanted_tokens is not None)

    async def _begin(self, asked: Asked, ends: ExitStack) -> Answer:
        slo = asked.wish.slo
        asked.wish.record.prompt_tokens = asked.prompt_tokens
        self._metrics.offered(slo)
        if not slo.is_background:
            self.attainment.offered(slo)
            self.traffic.arrived(slo.name, asked.prompt_tokens, asked.wish.variant)
        try:
            reply = await self._dispatcher.start(asked.work(self.output_lengths, self._prefix(asked)))
        except ApiError as error:
            self._refused(slo, error)
            raise
        except asyncio.CancelledError:
            self._metrics.cancelled(slo)
            raise
        ends.callback(reply.close)
        answer = Answer(
            reply,
            [Output(self._codec, request.sampling, index) for index, request in enumerate(asked.requests)],
            prompt_tokens=asked.prompt_tokens,
            num_choices=asked.body.n,
            arrived_s=asked.wish.arrived_s,
        )
        self._metrics.begun(slo, answer.choice, asked.prompt_tokens, answer.ttft_ms, answer.first_token)
        return answer

    def _refused(self, slo: SloLimits, error: ApiError) -> None:
        if error.status == HTTPStatus.TOO_MANY_REQUESTS:
            self._metrics.rejected(slo)
            if not slo.is_background:
                self.traffic.refused(slo.name)
        elif error.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            self._metrics.failed(slo)

    def _prefix(self, asked: Asked) -> tuple[int, ...]:
        """Of its first prompt: a request goes to one replica, and mostly it has one."""
        return prefix_hashes(asked.prompts[0].token_ids) if self._config.engine.prefix_caching else ()

    async def _respond(self, asked: Asked, answer: Answer, shape: Format, ends: ExitStack) -> Response:
        ends.callback(self._account, asked, answer)
        if asked.body.stream:
            stream = events(answer, shape, include_usage=asked.body.includes_usage)
            return EventStream(stream, self._headers(answer), ends.pop_all())
        pieces = await answer.whole()
        content = msgspec.json.encode(shape.whole(pieces, answer.usage()))
        return Response(content, media_type="application/json", headers=self._headers(answer))

    def _headers(self, answer: Answer) -> dict[str, str]:
        served = self.served.get(answer.variant)
        return answer.headers | ({"X-Quantfleet-Fingerprint": served.fingerprint} if served else {})

    def _account(self, asked: Asked, answer: Answer) -> None:
        asked.wish.record.answered(answer)
        slo, output_tokens = asked.wish.slo, sum(answer.output_tokens)
        if not answer.is_complete:
            self._metrics.ended_early(slo, answer.choice, output_tokens, is_broken=answer.is_broken)
            return
        outcome = answer.outcome(self._variants[answer.variant].quality)
        self._metrics.served(slo, answer.choice, outcome, output_tokens, answer.duration_s)
        if slo.is_background:
            return
        self.attainment.served(slo, outcome)
        self.traffic.finished(slo.name, output_tokens)
        if not asked.bounded:
            for tokens in answer.output_tokens:
                self.output_lengths.ended(slo.name, tokens)

    def _head(self, kind: str, body: GenerationBody, answer: Answer) -> Head:
        return Head(
            id=f"{kind}-{uuid4().hex}",
            created=int(time.time()),
            model=f"{self._config.model.name}:{answer.variant}",
            usage_in_chunks=body.includes_usage,
        )
