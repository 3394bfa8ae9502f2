"""A replica's Load as series: gauges as they are, counts by their growth, accelerator seconds by its share."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest

from cluster.load import Load
from serve_app.metrics.replica_metrics import COUNTERS, GAUGES, ReplicaMetrics
from tests.serve_app.metrics.recorded import RecordingMeter

LOAD = Load(
    replica_id="a",
    variant="nf4",
    measured_at_s=0.0,
    kv_tokens_capacity=4096,
    kv_tokens_used=512,
    decode_sequences=3,
    generated_tokens=100,
    prompt_tokens=900,
)


def value(meter: RecordingMeter, name: str) -> float:
    return meter.values[f"quantfleet_{name}", (("variant", "nf4"),)]


def test_gauges_follow_and_counts_grow() -> None:
    meter = RecordingMeter()
    metrics = ReplicaMetrics(meter, "nf4", share=0.5, now_s=10.0)
    assert value(meter, "decode_tokens") == 0, "there before the first token"
    metrics.tell(LOAD, 12.0)
    assert (value(meter, "kv_tokens_used"), value(meter, "decode_sequences")) == (512, 3)
    assert (value(meter, "decode_tokens"), value(meter, "prefill_tokens")) == (100, 900)
    metrics.tell(replace(LOAD, kv_tokens_used=0, generated_tokens=130), 14.0)
    assert value(meter, "kv_tokens_used") == 0
    assert (value(meter, "decode_tokens"), value(meter, "prefill_tokens")) == (130, 900)
    assert value(meter, "accelerator_seconds") == pytest.approx(2.0)


def test_every_field_is_a_loads() -> None:
    known = {field.name for field in fields(Load)}
    assert {*GAUGES.values(), *COUNTERS.values()} <= known
