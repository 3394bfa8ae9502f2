"""A request through a real fleet: its header's id, its log line and its spans are of one mind, and `top` shows it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import httpx
import pytest

from serve_app.span_export import EXPORTER
from tests.e2e.conftest import ROOT, Fleet
from tests.serve_app.otlp_collector import Collector, attributes, collecting

pytestmark = pytest.mark.ray
pytest.importorskip(EXPORTER, reason="the extra `otel` is not installed")

FLEET_YAML = """
model: {{name: smollm2-135m, source: embedded:smollm2-135m}}
variants: {{int8: {{method: int8, quality: 0.97}}}}
engine: {{max_context: 1024, kv_capacity_tokens: 4096}}
slo_classes: {{chat: {{ttft_ms: 5000, fallback: queue, deadline_s: 60}}}}
default_class: chat
http: {{port: 0}}
logging: {{format: json, folder: {folder}}}
tracing: {{endpoint: {endpoint}}}
"""
SECRET = "the launch code is 0000"
TRACE_ID, PARENT_ID = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TIMEOUT_S = 15.0


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with collecting() as kept:
        yield kept


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("logs")


@pytest.fixture(scope="module")
def observed(
    serve_of: Callable[..., AbstractContextManager[Fleet]],
    collector: Collector,
    logs: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Fleet]:
    fleet_yaml = FLEET_YAML.format(folder=logs, endpoint=collector.url)
    with serve_of(fleet_yaml, tmp_path_factory.mktemp("observed")) as fleet:
        yield fleet


def lines(folder: Path, request_id: str) -> list[dict[str, Any]]:
    """Of all of Serve's files there; every line of them is JSON."""
    written = [json.loads(line) for file in folder.rglob("*.log") for line in file.read_text().splitlines()]
    return [line for line in written if line.get("request_id") == request_id and line["message"] == "request ended"]


def test_one_id_in_header_log_and_spans(observed: Fleet, collector: Collector, logs: Path) -> None:
    body = {"model": "smollm2-135m", "messages": [{"role": "user", "content": SECRET}], "max_tokens": 8}
    answer = httpx.post(
        f"{observed.base_url}/chat/completions",
        json=body,
        headers={"traceparent": f"00-{TRACE_ID}-{PARENT_ID}-01"},
        timeout=60,
    )
    request_id = answer.headers["x-request-id"]
    observed.eventually(lambda: len(lines(logs, request_id)) == 1, TIMEOUT_S)
    observed.eventually(lambda: len(collector.spans()) == 5, TIMEOUT_S)
    (line,) = lines(logs, request_id)
    assert (line["slo_class"], line["variant"], line["status"]) == ("chat", "int8", 200)
    assert line["output_tokens"] == answer.json()["usage"]["completion_tokens"]
    assert line["trace_id"] == TRACE_ID
    spans = {span.name: span for span in collector.spans()}
    assert set(spans) == {"ingress", "route", "queue", "prefill", "decode"}
    assert {attributes(span)["request_id"] for span in spans.values()} == {request_id}
    assert {span.trace_id.hex() for span in spans.values()} == {TRACE_ID}
    prefill_ms = (spans["prefill"].end_time_unix_nano - spans["prefill"].start_time_unix_nano) / 1e6
    assert 0 < prefill_ms <= line["ttft_ms"]
    assert not any(SECRET in file.read_text() for file in logs.rglob("*.log"))


def test_top_shows_the_fleet(observed: Fleet) -> None:
    command = [sys.executable, "-m", "quantfleet", "top", "--once", "--url", observed.base_url]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (replica,) = [line.split() for line in done.stdout.splitlines() if line.startswith("int8")]
    assert replica[2] == "ready"
    assert any(line.startswith("chat") for line in done.stdout.splitlines())
