"""The way of spans to an OpenTelemetry collector, OTLP over HTTP; it makes none, and imports no Ray.

`quantfleet serve` asks it before Ray's settings are made, which Ray reads when it is imported.
"""

from __future__ import annotations

from importlib.metadata import version
from importlib.util import find_spec
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from cluster.config import TracingSection
from cluster.errors import UserError

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

EXPORTER = "opentelemetry.exporter.otlp.proto.http"
EXPORT_DELAY_MS = 1000
"""A fleet that is ended loses at most the spans of so long a time."""
TRACES_PATH = "/v1/traces"


def require_exporter(section: TracingSection) -> None:
    """UserError where spans are wanted and the packages that send them are not there."""
    if section.endpoint is None:
        return
    try:
        is_there = find_spec(EXPORTER) is not None
    except ModuleNotFoundError:
        is_there = False
    if not is_there:
        raise UserError(
            f"tracing.endpoint: {section.endpoint}, but OpenTelemetry's exporter is not installed;"
            " pip install 'quantfleet[otel]', or leave `tracing` out"
        )


def exporting(endpoint: str, sample: float) -> TracerProvider:
    """Sends in a thread of its own; a collector that is away costs spans and holds up no request.

    OTEL_EXPORTER_OTLP_HEADERS and _CERTIFICATE are read as OpenTelemetry has it. A client that has decided whether
    its trace is sampled is followed; of the others a share of `sample` is.
    """
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
    from opentelemetry.sdk.trace.sampling import ParentBasedTraceIdRatio

    resource = Resource.create({"service.name": "quantfleet", "service.version": version("quantfleet")})
    provider = TracerProvider(sampler=ParentBasedTraceIdRatio(sample), resource=resource)
    exporter = OTLPSpanExporter(endpoint=traces_url(endpoint))
    provider.add_span_processor(BatchSpanProcessor(exporter, schedule_delay_millis=EXPORT_DELAY_MS))
    return provider


def traces_url(endpoint: str) -> str:
    """The collector's address with OTLP's path, unless it has one of its own."""
    return endpoint if urlsplit(endpoint).path.strip("/") else endpoint.rstrip("/") + TRACES_PATH
