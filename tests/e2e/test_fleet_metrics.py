"""What the running fleet tells Prometheus, scraped from it after requests."""

from __future__ import annotations

import re
import time

import httpx
import pytest

from cluster.metric_catalogue import CATALOGUE
from tests.e2e.conftest import Fleet

pytestmark = pytest.mark.ray
AGENT_PERIOD_S = 10.0
"""Ray's processes tell their node's agent so often."""


def scraped(fleet: Fleet) -> dict[str, float]:
    """By series, Ray's own labels left out; of several replicas the sum."""
    found: dict[str, float] = {}
    url = re.search(r"Metrics for Prometheus: (\S+)", fleet.log.read_text())
    assert url is not None
    for line in httpx.get(url[1], timeout=10).text.splitlines():
        series = re.fullmatch(r"(ray_quantfleet_\w+)\{(.*)\} (\S+)", line)
        if series:
            ours = re.findall(r'(slo_class|variant|le)="([^"]*)"', series[2])
            name = series[1] + "".join(f",{key}={value}" for key, value in sorted(ours))
            found[name] = found.get(name, 0.0) + float(series[3])
    return found


def test_the_fleet_tells_what_it_did(fleet: Fleet) -> None:
    client = fleet.client()
    for _ in range(3):
        client.completions.create(
            model="smollm2-135m:int8",
            prompt="Once",
            max_tokens=8,
            extra_body={"slo": "interactive", "ignore_eos": True},
        )
    deadline_s = time.monotonic() + 3 * AGENT_PERIOD_S
    told: dict[str, float] = {}
    while time.monotonic() < deadline_s:
        told = scraped(fleet)
        if told.get("ray_quantfleet_requests_served_total,slo_class=interactive,variant=int8", 0) >= 3:
            break
        time.sleep(1)
    served = told["ray_quantfleet_requests_served_total,slo_class=interactive,variant=int8"]
    assert served >= 3
    assert told["ray_quantfleet_generated_tokens_total,slo_class=interactive,variant=int8"] >= 24
    assert told["ray_quantfleet_ttft_seconds_count,slo_class=interactive,variant=int8"] >= 3
    assert told["ray_quantfleet_kv_tokens_capacity,variant=int8"] == 4096
    assert told["ray_quantfleet_decode_tokens_total,variant=int8"] > 0
    # Counters of what has never happened are there, at 0.
    assert told["ray_quantfleet_requests_degraded_total,slo_class=request,variant=nf4"] == 0
    names = {name.partition(",")[0] for name in told}
    counters = {metric.exported for metric in CATALOGUE if metric.kind == "counter"}
    assert counters <= names
