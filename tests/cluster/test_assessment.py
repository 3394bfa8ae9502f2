"""Assessing one replica for one request: what it misses, in figures and in words."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cluster.accelerators import Accelerator
from cluster.assessment import Candidate, RouteQuery, assess, best_of_each_variant, idle_keeps, wanted
from cluster.cost_model import CostModel
from cluster.model_shape import ModelShape
from cluster.prediction import Backlog, ReplicaLimits
from cluster.slo import SloLimits
from cluster.variants import Variant

LIMITS = ReplicaLimits(token_budget=128, max_sequences=64, max_waiting=16)
STRICT = SloLimits(name="strict", ttft_ms=200, tpot_ms=40, min_quality=0.95)
BUSY = Backlog(kv_capacity_tokens=16384, kv_used_tokens=1500, decoding=15)


@pytest.fixture
def model(smollm: ModelShape, host: Accelerator) -> CostModel:
    return CostModel(smollm, Variant(name="int8", method="int8", quality=0.9), host, share=0.5)


def query(slo: SloLimits) -> RouteQuery:
    return RouteQuery(slo=slo, prompt_tokens=40, expected_output_tokens=50)


def assessed(
    model: CostModel, slo: SloLimits, backlog: Backlog = BUSY, promised_tpot_ms: float | None = None
) -> Candidate:
    return assess(query(slo), model, LIMITS, backlog, replica_id="int8-0", promised_tpot_ms=promised_tpot_ms)


def test_every_miss_is_told(model: CostModel) -> None:
    candidate = assessed(model, STRICT)
    assert not candidate.meets_all
    assert candidate.shortcoming() == "int8 has quality 0.90 and misses ttft 231ms tpot 62ms"
    assert candidate.overshoot == pytest.approx(candidate.prediction.tpot_s * 1e3 / 40)


def test_nothing_missed(model: CostModel) -> None:
    candidate = assessed(model, SloLimits(name="loose", ttft_ms=5000, tpot_ms=500, min_quality=0.9))
    assert candidate.meets_all
    assert candidate.overshoot < 1


def test_a_promise_counts_only_while_it_is_kept(model: CostModel) -> None:
    loose = SloLimits(name="loose")
    assert assessed(model, loose, promised_tpot_ms=60).misses == ("others' tpot 62ms",)
    assert assessed(model, loose, promised_tpot_ms=30).meets_all, "fifteen decodes break 30 ms already"
    assert assessed(model, loose, promised_tpot_ms=70).meets_all


def test_a_deadline_is_a_limit_of_throughput_only(model: CostModel) -> None:
    late = SloLimits(name="late", objective="throughput", deadline_s=1)
    assert "deadline" in assessed(model, late).misses[0]
    assert assessed(model, replace(late, objective="latency")).meets_all


def test_what_an_idle_replica_keeps(model: CostModel) -> None:
    assert idle_keeps(query(STRICT), model, LIMITS)
    assert not idle_keeps(query(replace(STRICT, tpot_ms=1)), model, LIMITS)


def test_wishes_in_words() -> None:
    assert wanted(STRICT) == "ttft<=200ms tpot<=40ms quality>=0.95"
    assert wanted(SloLimits(name="none")) == "no limit"


def test_a_variant_is_told_by_its_replica_nearest_to_the_limits(model: CostModel) -> None:
    near, far = assessed(model, STRICT), assessed(model, STRICT, replace(BUSY, decoding=30))
    assert best_of_each_variant([far, near]) == [near]
