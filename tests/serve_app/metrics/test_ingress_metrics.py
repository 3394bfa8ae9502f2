"""What waits, and the last scaling decision, where there is one."""

from __future__ import annotations

from dataclasses import asdict

from autoscaling.scaling import PlannedLoad
from serve_app.metrics.ingress_metrics import BOUNDS, IngressMetrics
from tests.serve_app.metrics.recorded import RecordingMeter


def test_without_a_planner_the_replicas_of_the_configuration_are_wanted() -> None:
    meter = RecordingMeter()
    IngressMetrics(meter, {"bf16": 2}, lambda: 3, lambda: None).tell(100.0)
    assert meter.values == {
        ("quantfleet_requests_waiting", ()): 3,
        ("quantfleet_target_replicas", (("variant", "bf16"),)): 2,
    }


def test_the_decision_is_told_with_its_age() -> None:
    meter = RecordingMeter()
    decision = {"decided_at_s": 93.0, "replicas": {"bf16": 1, "nf4": 0}, "loads": []}
    IngressMetrics(meter, {}, lambda: 0, lambda: decision).tell(100.0)
    assert meter.values["quantfleet_scaling_decision_age_seconds", ()] == 7.0
    targets = {labels: value for (name, labels), value in meter.values.items() if name == "quantfleet_target_replicas"}
    assert targets == {(("variant", "bf16"),): 1, (("variant", "nf4"),): 0}


def load(slo_class: str, variant: str, bound: str = "KV") -> dict[str, object]:
    planned = PlannedLoad(
        slo_class=slo_class, variant=variant, requests_per_s=4.0, rate_replicas=1.5, kv_replicas=1.75, bound=bound
    )
    return asdict(planned)


def test_what_a_decision_counts_on_is_told_until_the_next_counts_on_something_else() -> None:
    meter, decision = RecordingMeter(), {"decided_at_s": 90.0, "replicas": {}, "loads": [load("chat", "bf16")]}
    metrics = IngressMetrics(meter, {}, lambda: 0, lambda: decision)
    metrics.tell(100.0)
    assert value(meter, "planned_requests_per_second", slo_class="chat") == 4.0
    assert value(meter, "needed_replicas", slo_class="chat", variant="bf16", bound="kv") == 1.75
    assert value(meter, "needed_replicas", slo_class="chat", variant="bf16", bound="rate") == 1.5
    bounds = {bound: value(meter, "binding_bound", slo_class="chat", variant="bf16", bound=bound) for bound in BOUNDS}
    assert bounds == {"kv": 1, "sequences": 0, "tpot": 0, "ttft": 0, "rate": 0}
    decision |= {"decided_at_s": 100.0, "loads": [load("chat", "nf4", "TPOT")]}
    metrics.tell(101.0)
    assert value(meter, "needed_replicas", slo_class="chat", variant="nf4", bound="kv") == 1.75
    assert value(meter, "binding_bound", slo_class="chat", variant="nf4", bound="tpot") == 1
    assert value(meter, "needed_replicas", slo_class="chat", variant="bf16", bound="kv") == 0
    assert value(meter, "binding_bound", slo_class="chat", variant="bf16", bound="kv") == 0


def value(meter: RecordingMeter, name: str, **labels: str) -> float:
    return meter.values[f"quantfleet_{name}", tuple(sorted(labels.items()))]
