"""OpenTelemetry spans of a request, made from its record once it has ended; it asks no engine for the time.

One `ingress` span, and in it `route` (until the request was sent to the replica that answered), `queue` (until the
engine's step that ran its first chunk), `prefill` (until the first token) and `decode` (until the last). All stand on
the ingress's clock. Of `queue` and `prefill` the engine tells only how long they were; they are laid in the middle of
the time between sending and the first token's coming, whose rest are the ways there and back: they may be off by half
of that rest, and by nothing that clocks of hosts differ in.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import version
from typing import TYPE_CHECKING, NamedTuple

from cluster.config import TracingSection
from serve_app.request_record import RequestRecord
from serve_app.span_export import exporting, require_exporter

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider


class Phase(NamedTuple):
    name: str
    from_s: float
    to_s: float


def phases(record: RequestRecord) -> Iterator[Phase]:
    """Those that the request came to, in order."""
    asked_s, first, first_s, last_s = record.asked_s, record.first_token, record.first_s, record.last_s
    if asked_s is None:
        return
    if first is None or first_s is None or last_s is None:
        yield Phase("route", asked_s, record.ended_s)
        return
    sent_s = asked_s + first.routed_s
    ways_s = max(0.0, first_s - sent_s - first.queued_s - first.prefill_s)
    arrived_s = sent_s + ways_s / 2
    began_s = min(first_s, arrived_s + first.queued_s)
    yield Phase("route", asked_s, sent_s)
    yield Phase("queue", arrived_s, began_s)
    yield Phase("prefill", began_s, min(first_s, began_s + first.prefill_s))
    yield Phase("decode", first_s, last_s)


class RequestTracer:
    """Observer that makes a request's spans; to be told before a log that shall name its trace."""

    def __init__(self, provider: TracerProvider) -> None:
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._tracer = provider.get_tracer("quantfleet", version("quantfleet"))
        self._propagator = TraceContextTextMapPropagator()

    def __call__(self, record: RequestRecord) -> None:
        from opentelemetry.trace import SpanKind, Status, StatusCode, set_span_in_context

        def unix_ns(at_s: float) -> int:
            return record.arrived_unix_ns + round((at_s - record.arrived_s) * 1e9)

        parent = self._propagator.extract(record.trace_headers)
        span = self._tracer.start_span(
            "ingress", parent, SpanKind.SERVER, start_time=record.arrived_unix_ns, record_exception=False
        )
        if not span.is_recording():
            return
        record.trace_id = f"{span.get_span_context().trace_id:032x}"
        span.set_attributes(record.fields())
        if record.error is not None:
            span.set_status(Status(StatusCode.ERROR, record.error))
        inside = set_span_in_context(span)
        for phase in phases(record):
            part = self._tracer.start_span(
                phase.name,
                inside,
                attributes={"request_id": record.request_id},
                start_time=unix_ns(phase.from_s),
            )
            part.end(unix_ns(phase.to_s))
        span.end(unix_ns(record.ended_s))


def request_tracer(section: TracingSection) -> list[RequestTracer]:
    """None where no endpoint is named."""
    if section.endpoint is None:
        return []
    require_exporter(section)
    return [RequestTracer(exporting(section.endpoint, section.sample))]
