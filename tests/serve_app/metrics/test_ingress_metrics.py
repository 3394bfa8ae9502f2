"""What waits, and the last scaling decision, where there is one."""

from __future__ import annotations

from serve_app.metrics.ingress_metrics import IngressMetrics
from tests.serve_app.metrics.recorded import RecordingMeter


def test_without_a_planner_only_what_waits_is_told() -> None:
    meter = RecordingMeter()
    IngressMetrics(meter, lambda: 3, lambda: None).tell(100.0)
    assert meter.values == {("quantfleet_requests_waiting", ()): 3}


def test_the_decision_is_told_with_its_age() -> None:
    meter = RecordingMeter()
    decision = {"decided_at_s": 93.0, "replicas": {"bf16": 1, "nf4": 0}}
    IngressMetrics(meter, lambda: 0, lambda: decision).tell(100.0)
    assert meter.values["quantfleet_scaling_decision_age_seconds", ()] == 7.0
    targets = {labels: value for (name, labels), value in meter.values.items() if name == "quantfleet_target_replicas"}
    assert targets == {(("variant", "bf16"),): 1, (("variant", "nf4"),): 0}
