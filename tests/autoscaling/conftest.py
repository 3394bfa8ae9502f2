"""A model and hardware that no test machine has: Llama-3.1-8B on H100s, by the roofline."""

from __future__ import annotations

from pathlib import Path

import pytest

from autoscaling.fleet_plan import FleetTerms, VariantBounds
from autoscaling.sustained import ReplicaCapability
from cluster.accelerators import accelerator_named
from cluster.cost_model import CostModel
from cluster.model_shape import ModelShape
from cluster.prediction import ReplicaLimits
from cluster.slo import SloLimits
from cluster.variants import Variant

LLAMA = Path(__file__).parents[2] / "engine" / "bench" / "llama-3.1-8b" / "config.json"
VARIANTS = (
    Variant(name="bf16", quality=1.0),
    Variant(name="fp8", method="fp8", quality=0.995),
    Variant(name="int4", method="awq", quality=0.96),
)
CLASSES = {
    "interactive": SloLimits(name="interactive", ttft_ms=500, tpot_ms=40, min_quality=0.9, fallback="degrade"),
    "standard": SloLimits(name="standard", ttft_ms=2000, tpot_ms=100, min_quality=0.97, deadline_s=20),
    "exact": SloLimits(name="exact", ttft_ms=5000, tpot_ms=150, min_quality=1.0, deadline_s=60),
    "throughput": SloLimits(name="throughput", objective="throughput", min_quality=0.97, deadline_s=600),
}


@pytest.fixture(scope="session")
def replicas() -> dict[str, ReplicaCapability]:
    """One of each variant on a whole card."""
    shape, card = ModelShape.from_hf_config(LLAMA, 16384), accelerator_named("H100-80G")
    return {
        variant.name: ReplicaCapability(
            model=CostModel(shape, variant, card),
            kv_capacity_tokens=430_000,
            block_size=16,
            limits=ReplicaLimits(token_budget=2048, max_sequences=256, max_waiting=256),
            cold_start_s=40,
        )
        for variant in VARIANTS
    }


@pytest.fixture(scope="session")
def terms(replicas: dict[str, ReplicaCapability]) -> FleetTerms:
    return FleetTerms(
        replicas=replicas,
        bounds={name: VariantBounds(min=0, max=64) for name in replicas},
        classes=CLASSES,
        budget_replicas=64,
    )
