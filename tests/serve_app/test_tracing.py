"""Spans of real requests, as a receiver of OTLP over HTTP gets them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from cluster.config import FleetConfig, TracingSection
from cluster.errors import UserError
from serve_app import span_export
from serve_app.dispatch import FirstToken
from serve_app.request_record import RequestRecord
from serve_app.span_export import exporting, require_exporter, traces_url
from serve_app.tracing import RequestTracer, phases, request_tracer
from tests.serve_app.otlp_collector import Collector, attributes, collecting

CHAT: dict[str, Any] = {"model": "small", "messages": [{"role": "user", "content": "a secret"}]}
TRACE_ID, PARENT_ID = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.fixture
def collector() -> Iterator[Collector]:
    with collecting() as kept:
        yield kept


@pytest.fixture
def send(collector: Collector) -> Iterator[Callable[..., list[Any]]]:
    """Makes the spans of records and says what has arrived."""
    pytest.importorskip(span_export.EXPORTER, reason="the extra `otel` is not installed")
    providers = []

    def sent(records: list[RequestRecord], sample: float = 1.0) -> list[Any]:
        providers.append(exporting(collector.url, sample))
        tracer = RequestTracer(providers[-1])
        for record in records:
            tracer(record)
        providers[-1].force_flush()
        return collector.spans()

    yield sent
    for provider in providers:
        provider.shutdown()


async def test_a_request_is_five_spans(running: Any, collector: Collector, send: Callable[..., list[Any]]) -> None:
    began_ns = time.time_ns()
    await running.http.post("/v1/chat/completions", json=CHAT, headers={"X-Request-Id": "id-1"})
    (record,) = running.records
    spans = {span.name: span for span in send([record])}
    ingress = spans.pop("ingress")
    parts = [spans[name] for name in ("route", "queue", "prefill", "decode")]
    assert len(spans) == 4
    assert [path for path, _ in collector.bodies] == ["/v1/traces"]
    assert all(attributes(span)["request_id"] == "id-1" for span in (ingress, *parts))
    assert all((part.trace_id, part.parent_span_id) == (ingress.trace_id, ingress.span_id) for part in parts)
    assert record.trace_id == ingress.trace_id.hex()
    assert attributes(ingress)["variant"] == record.variant
    assert attributes(ingress)["status"] == 200
    times = [(part.start_time_unix_nano, part.end_time_unix_nano) for part in parts]
    assert began_ns <= ingress.start_time_unix_nano <= times[0][0]
    assert all(start <= end for start, end in times)
    assert all(before[1] <= after[0] for before, after in pairwise(times))
    assert times[-1][1] <= ingress.end_time_unix_nano <= time.time_ns()
    assert times[1][1] - times[1][0] == pytest.approx(0.5e6, rel=0.01)
    assert times[2][1] - times[2][0] == pytest.approx(1e6, rel=0.01)
    assert b"secret" not in b"".join(body for _, body in collector.bodies)


async def test_the_clients_trace_goes_on(running: Any, send: Callable[..., list[Any]]) -> None:
    for flags in ("01", "00"):
        traceparent = f"00-{TRACE_ID}-{PARENT_ID}-{flags}"
        await running.http.post("/v1/chat/completions", json=CHAT, headers={"traceparent": traceparent})
    sampled, dropped = running.records
    spans = send([sampled, dropped], sample=0.0)
    assert len(spans) == 5, "the client's word counts before the sample"
    assert {span.trace_id.hex() for span in spans} == {TRACE_ID}
    (root,) = [span for span in spans if span.name == "ingress"]
    assert root.parent_span_id.hex() == PARENT_ID
    assert dropped.trace_id is None


async def test_a_traceparent_that_is_none_begins_a_trace(running: Any, send: Callable[..., list[Any]]) -> None:
    await running.http.post("/v1/chat/completions", json=CHAT, headers={"traceparent": "00-zz-1-01"})
    (root,) = [span for span in send(running.records) if span.name == "ingress"]
    assert root.parent_span_id == b""


async def test_what_is_refused_was_only_routed(running: Any, replicas: Any, send: Callable[..., list[Any]]) -> None:
    for replica in replicas:
        replica.refuses = True
    await running.http.post("/v1/chat/completions", json=CHAT, headers={"X-SLO-Class": "best"})
    await running.http.post("/v1/chat/completions", json=CHAT | {"n": 0})
    spans = send(running.records)
    assert [span.name for span in spans] == ["route", "ingress", "ingress"]
    assert [span.status.message for span in spans if span.name == "ingress"] == ["fleet_full", "invalid_request_error"]
    assert all(span.status.code == 2 for span in spans if span.name == "ingress")


def of_times(*, queued_s: float, prefill_s: float) -> RequestRecord:
    """Asked at 10 s, sent at 11 s, first token at 13 s, last at 14 s."""
    return RequestRecord(
        request_id="a", path="/", arrived_s=10.0, arrived_unix_ns=0, trace_headers={}, asked_s=10.0, ended_s=14.0,
        first_token=FirstToken(routed_s=1.0, queued_s=queued_s, prefill_s=prefill_s), first_s=13.0, last_s=14.0,
    )  # fmt: skip


def test_the_engines_time_lies_in_the_middle() -> None:
    assert list(phases(of_times(queued_s=0.5, prefill_s=0.5))) == [
        ("route", 10.0, 11.0),
        ("queue", 11.5, 12.0),
        ("prefill", 12.0, 12.5),
        ("decode", 13.0, 14.0),
    ]


def test_an_engine_whose_seconds_are_longer_stays_before_the_first_token() -> None:
    """As clocks that run at different rates would have it."""
    assert list(phases(of_times(queued_s=1.5, prefill_s=1.5)))[1:3] == [("queue", 11.0, 12.5), ("prefill", 12.5, 13.0)]


def test_off_by_default() -> None:
    assert request_tracer(TracingSection()) == []


def test_without_the_exporter_it_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    for missing in ("opentelemetry.exporter.no_such", "no_such_package.at_all"):
        monkeypatch.setattr(span_export, "EXPORTER", missing)
        with pytest.raises(UserError, match=r"tracing.endpoint: http://x:4318.*pip install 'quantfleet\[otel\]'"):
            require_exporter(TracingSection(endpoint="http://x:4318"))
        require_exporter(TracingSection())


@pytest.mark.parametrize(
    ("endpoint", "url"),
    [
        ("http://a:4318", "http://a:4318/v1/traces"),
        ("http://a:4318/", "http://a:4318/v1/traces"),
        ("https://a/otlp/v1/traces", "https://a/otlp/v1/traces"),
    ],
)
def test_the_path_of_otlp(endpoint: str, url: str) -> None:
    assert traces_url(endpoint) == url


@pytest.mark.parametrize("section", [{"endpoint": "localhost:4318"}, {"sample": 1.5}, {"url": "http://a"}])
def test_settings_that_are_none(section: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"fleet.yaml: tracing"):
        FleetConfig.of({"model": {"source": "embedded:smollm2-135m"}, "tracing": section})
