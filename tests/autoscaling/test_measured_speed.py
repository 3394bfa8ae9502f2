"""A fleet whose steps take longer than predicted needs more replicas, and says so."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from autoscaling.fleet_plan import FleetTerms
from autoscaling.kv_aware import KvAwarePolicy, KvAwareSettings
from autoscaling.measured_speed import MeasuredSpeeds, at_speed
from autoscaling.scaling import ClassTraffic, FleetObservation, ScalingDecision
from autoscaling.sustained import Mix, sustained
from cluster.load import Load

TRAFFIC = ClassTraffic(
    slo_class="standard",
    arrivals=1500,
    window_s=10.0,
    prompt_tokens=1155 * 1500,
    output_tokens=211 * 1500,
    finished=1500,
    refused=0,
)


def load(variant: str, ratio: float, samples: int = 1000) -> Load:
    return Load(
        replica_id=f"{variant}-{ratio}-{samples}",
        variant=variant,
        measured_at_s=0.0,
        kv_tokens_capacity=430_000,
        kv_tokens_used=0,
        step_time_ratio=ratio,
        step_samples=samples,
    )


def decided(terms: FleetTerms, ratios: Mapping[str, float]) -> ScalingDecision:
    loads = tuple(load(name, ratio) for name, ratio in ratios.items())
    observation = FleetObservation(now_s=10.0, loads=loads, starting={}, draining={}, traffic=(TRAFFIC,))
    return KvAwarePolicy(terms, KvAwareSettings()).decide(observation)


def test_ratios_are_the_mean_of_those_who_measured_enough() -> None:
    speeds = MeasuredSpeeds()
    loads = [load("bf16", 1.2), load("bf16", 1.41), load("bf16", 9.0, samples=3), load("fp8", 0.01), load("int4", 99.0)]
    speeds.observe(loads, 0.0)
    assert speeds.ratios() == {"bf16": pytest.approx(1.3), "fp8": 0.5, "int4": 3.0}


def test_what_a_replica_tells_for_a_moment_changes_little() -> None:
    speeds = MeasuredSpeeds()
    for second in range(0, 300, 5):
        speeds.observe([load("bf16", 2.0 if second == 200 else 1.0)], float(second))
    assert speeds.ratios() == {"bf16": 1.0}
    for second in range(300, 600, 5):
        speeds.observe([load("bf16", 2.0)], float(second))
    assert speeds.ratios()["bf16"] == pytest.approx(2.0, abs=0.05)


def test_steps_half_as_fast_hold_at_most_half(terms: FleetTerms) -> None:
    mix = Mix(prompt_tokens=1155, output_tokens=211, tpot_s=0.2)
    slow = at_speed(terms, {"bf16": 2.0}).replicas["bf16"]
    assert sustained(slow, mix).rate_per_s <= 0.51 * sustained(terms.replicas["bf16"], mix).rate_per_s


def test_slow_steps_ask_for_more_replicas_and_say_why(terms: FleetTerms) -> None:
    as_predicted, slow = (
        decided(terms, dict.fromkeys(terms.bounds, 1.0)),
        decided(terms, dict.fromkeys(terms.bounds, 1.5)),
    )
    assert sum(slow.replicas.values()) > sum(as_predicted.replicas.values())
    assert "bf16's steps take 1.50 times the predicted" in slow.reason
    assert "times the predicted" not in as_predicted.reason
