"""What becomes of requests, as series: nothing is missing before its first event, and each end counts once."""

from __future__ import annotations

import pytest

from cluster.choice import Choice
from cluster.slo import BACKGROUND, Outcome, SloLimits
from serve_app.dispatch import FirstToken
from serve_app.metrics.request_metrics import RequestMetrics
from tests.serve_app.metrics.recorded import RecordingMeter

CHAT = SloLimits(name="chat", ttft_ms=500, tpot_ms=50)
CHOICE = Choice(
    variant="int8", replica_id="a", reason="", predicted_ttft_ms=200, predicted_tpot_ms=25, predicted_cost_s=3
)

FIRST = FirstToken(routed_s=0.0625, queued_s=0.03125, prefill_s=0.125)


def series(name: str, **labels: str) -> tuple[str, tuple[tuple[str, str], ...]]:
    return f"quantfleet_{name}", tuple(sorted(labels.items()))


@pytest.fixture
def meter() -> RecordingMeter:
    return RecordingMeter()


@pytest.fixture
def metrics(meter: RecordingMeter) -> RequestMetrics:
    return RequestMetrics(meter, ["chat", "bulk"], {"bf16": 1.0, "int8": 0.5})


def test_every_counter_is_there_before_the_first_request(meter: RecordingMeter, metrics: RequestMetrics) -> None:
    assert set(meter.values.values()) == {0.0}
    for slo_class in ("chat", "bulk", "request"):
        for name in ("offered", "met", "rejected", "failed", "cancelled"):
            assert series(f"requests_{name}", slo_class=slo_class) in meter.values
        for variant in ("bf16", "int8"):
            assert series("requests_served", slo_class=slo_class, variant=variant) in meter.values


def test_an_answer_within_its_limits(meter: RecordingMeter, metrics: RequestMetrics) -> None:
    metrics.offered(CHAT)
    metrics.begun(CHAT, CHOICE, prompt_tokens=90, ttft_ms=300, first_token=FIRST)
    metrics.served(CHAT, CHOICE, Outcome(ttft_ms=300, tpot_ms=20, quality=1.0), output_tokens=40, duration_s=1.08)
    counted = {name: value for name, value in meter.values.items() if value}
    assert counted == {
        series("requests_offered", slo_class="chat"): 1,
        series("requests_met", slo_class="chat"): 1,
        series("requests_served", slo_class="chat", variant="int8"): 1,
        series("prompt_tokens", slo_class="chat", variant="int8"): 90,
        series("generated_tokens", slo_class="chat", variant="int8"): 40,
        series("request_accelerator_seconds", slo_class="chat", variant="int8"): 1.5,
    }
    assert meter.observed == {
        series("ttft_seconds", slo_class="chat", variant="int8"): [0.3],
        series("tpot_seconds", slo_class="chat", variant="int8"): [0.02],
        series("queue_seconds", slo_class="chat", variant="int8"): [0.0625 + 0.03125],
        series("framework_seconds", variant="int8"): [pytest.approx(0.3 - 0.0625 - 0.03125 - 0.125)],
        series("request_duration_seconds", slo_class="chat", variant="int8"): [1.08],
        series("ttft_prediction_ratio", variant="int8"): [1.5],
        series("tpot_prediction_ratio", variant="int8"): [0.8],
    }


def test_a_late_answer_is_served_and_not_met(meter: RecordingMeter, metrics: RequestMetrics) -> None:
    metrics.served(CHAT, CHOICE, Outcome(ttft_ms=900, tpot_ms=None, quality=1.0), output_tokens=1, duration_s=0.9)
    assert meter.values[series("requests_served", slo_class="chat", variant="int8")] == 1
    assert meter.values[series("requests_met", slo_class="chat")] == 0
    assert series("tpot_seconds", slo_class="chat", variant="int8") not in meter.observed, "an answer of one token"


def test_other_ends(meter: RecordingMeter, metrics: RequestMetrics) -> None:
    metrics.rejected(CHAT)
    metrics.failed(CHAT)
    metrics.cancelled(CHAT)
    metrics.ended_early(CHAT, CHOICE, 7, is_broken=False)
    metrics.ended_early(CHAT, CHOICE, 5, is_broken=True)
    counted = [
        meter.values[series(f"requests_{name}", slo_class="chat")] for name in ("rejected", "failed", "cancelled")
    ]
    assert counted == [1, 2, 2]
    assert meter.values[series("generated_tokens", slo_class="chat", variant="int8")] == 12
    assert meter.values[series("requests_served", slo_class="chat", variant="int8")] == 0


def test_background_requests_are_counted_by_what_they_take(meter: RecordingMeter, metrics: RequestMetrics) -> None:
    metrics.offered(BACKGROUND)
    metrics.rejected(BACKGROUND)
    metrics.begun(BACKGROUND, CHOICE, prompt_tokens=90, ttft_ms=9000, first_token=FIRST)
    metrics.served(BACKGROUND, CHOICE, Outcome(ttft_ms=9000, tpot_ms=20, quality=1.0), output_tokens=40, duration_s=9.8)
    metrics.ended_early(BACKGROUND, CHOICE, 2, is_broken=True)
    labels = {"slo_class": "background", "variant": "int8"}
    assert {name: value for name, value in meter.values.items() if value} == {
        series("requests_served", **labels): 1,
        series("prompt_tokens", **labels): 90,
        series("generated_tokens", **labels): 42,
        series("request_accelerator_seconds", **labels): 1.5,
    }
    assert not meter.observed
