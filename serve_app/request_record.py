"""RequestRecord: one HTTP request from arrival to end, for logs and traces alike; it writes neither of them."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from starlette.requests import ClientDisconnect, Request

from serve_app.answer import Answer
from serve_app.dispatch import FirstToken
from serve_app.errors import ApiError

log = logging.getLogger("ray.serve")

REQUEST_ID_HEADER = "x-request-id"
"""Serve gives every request that has none one, and answers with it."""
TRACE_HEADERS = ("traceparent", "tracestate")
MAX_ID_CHARACTERS = 128
CLIENT_CLOSED = "client_closed"
CLIENT_CLOSED_STATUS = 499
"""Which nobody received: the client went away before there was any."""


@dataclass(slots=True, kw_only=True)
class RequestRecord:
    """Filled in on the way; what never came is None. Times by time.monotonic of the ingress; of the engine there are
    only durations, since clocks of hosts differ."""

    request_id: str
    path: str
    arrived_s: float
    arrived_unix_ns: int
    trace_headers: Mapping[str, str]
    """W3C trace context, where the client sent one."""
    trace_id: str | None = None
    status: int = 200
    error: str | None = None
    """The code that the client was told, or why it was told nothing."""
    is_stream: bool = False
    slo_class: str | None = None
    prompt: Mapping[str, Any] | None = None
    """As the body had it; only where the configuration says so."""
    prompt_tokens: int | None = None
    asked_s: float | None = None
    """When it was known what the body asks for; the limits of its class count from here."""
    first_token: FirstToken | None = None
    first_s: float | None = None
    last_s: float | None = None
    """When the first and the newest token had come."""
    variant: str | None = None
    replica_id: str | None = None
    cached_tokens: int | None = None
    output_tokens: int | None = None
    ttft_ms: float | None = None
    tpot_ms: float | None = None
    ended_s: float = 0.0

    @classmethod
    def of(cls, request: Request) -> RequestRecord:
        headers = request.headers
        return cls(
            request_id=headers.get(REQUEST_ID_HEADER, "")[:MAX_ID_CHARACTERS] or str(uuid4()),
            path=request.url.path,
            arrived_s=time.monotonic(),
            arrived_unix_ns=time.time_ns(),
            trace_headers={name: headers[name] for name in TRACE_HEADERS if name in headers},
        )

    def asked(self, slo_class: str, at_s: float, *, is_stream: bool) -> None:
        self.slo_class, self.asked_s, self.is_stream = slo_class, at_s, is_stream

    def answered(self, answer: Answer) -> None:
        """What is known of the answer now that nothing more comes."""
        usage = answer.usage()
        self.variant, self.replica_id = answer.variant, answer.choice.replica_id
        self.first_token = answer.first_token
        if self.asked_s is not None:
            self.first_s, self.last_s = self.asked_s + answer.ttft_ms / 1e3, self.asked_s + answer.duration_s
        self.cached_tokens = usage["prompt_tokens_details"]["cached_tokens"]
        self.output_tokens = usage["completion_tokens"]
        self.ttft_ms, self.tpot_ms = answer.ttft_ms, answer.outcome(None).tpot_ms
        if answer.is_broken:
            self.error = "replica_lost"
        elif not answer.is_complete:
            self.client_closed()

    def client_closed(self) -> None:
        self.error = self.error or CLIENT_CLOSED
        self.status = self.status if self.is_stream else CLIENT_CLOSED_STATUS

    def failed(self, status: int, code: str) -> None:
        self.status, self.error = status, code

    def fields(self) -> dict[str, Any]:
        """By the names that a log line and a span have them under: no prompt, no key, and only what is known."""
        known = {
            "request_id": self.request_id,
            "trace_id": self.trace_id,
            "path": self.path,
            "status": self.status,
            "error": self.error,
            "stream": self.is_stream,
            "slo_class": self.slo_class,
            "variant": self.variant,
            "replica_id": self.replica_id,
            "prompt_tokens": self.prompt_tokens,
            "cached_tokens": self.cached_tokens,
            "output_tokens": self.output_tokens,
            "ttft_ms": self.ttft_ms,
            "tpot_ms": self.tpot_ms,
            "duration_ms": (self.ended_s - self.arrived_s) * 1e3,
        }
        if self.first_token is not None:
            known["routed_ms"] = self.first_token.routed_s * 1e3
            known["queued_ms"] = self.first_token.queued_s * 1e3
            known["prefill_ms"] = self.first_token.prefill_s * 1e3
        for name, value in known.items():
            known[name] = round(value, 3) if isinstance(value, float) else value
        return {name: value for name, value in known.items() if value is not None}


Observer = Callable[[RequestRecord], None]
"""Told of a request when it has ended."""


@contextmanager
def recorded(request: Request, observers: Sequence[Observer]) -> Iterator[RequestRecord]:
    """A record from here to the request's end, whatever that is; its observers' failures are no request's."""
    record = RequestRecord.of(request)
    try:
        yield record
    except ApiError as error:
        record.failed(error.status, error.code or error.kind)
        raise
    except (asyncio.CancelledError, ClientDisconnect):
        record.client_closed()
        raise
    except BaseException:
        record.failed(500, "internal_error")
        raise
    finally:
        record.ended_s = time.monotonic()
        for observer in observers:
            try:
                observer(record)
            except Exception:
                log.exception("a request's log line or trace was not written")
