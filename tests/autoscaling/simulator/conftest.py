"""Small fleets of Llama-3.1-8B on H100s for the simulator, by the roofline and by a made-up profile."""

from __future__ import annotations

from dataclasses import replace

import pytest

from autoscaling.fleet_plan import FleetTerms, VariantBounds
from autoscaling.sustained import ReplicaCapability
from cluster.cost_model import CostModel
from cluster.prediction import ReplicaLimits
from cluster.profile import Profile, ProfileKey, ProfilePoint, StepShape


def profiled(model: CostModel) -> CostModel:
    """Slower than the roofline, and the more so the more decodes there are: a fit leaves residuals."""
    shapes = [
        StepShape(decode_sequences=decodes, kv_tokens=decodes * context, prefill_tokens=prefill)
        for decodes in (0, 1, 8, 64, 256)
        for context in (128, 1024, 4096)
        for prefill in (0, 512, 2048)
        if decodes or prefill
    ]
    points = [
        ProfilePoint(shape=shape, step_s=model.step_s(shape) * (1.2 + 0.1 * (index % 4)))
        for index, shape in enumerate(shapes)
    ]
    key = ProfileKey(model="llama", variant=model.variant.name, accelerator="H100-80G", threads=1, versions={})
    profile = Profile(key=key, points=tuple(points), measured_at="2026-01-01")
    return CostModel(model.shape, model.variant, model.accelerator, profile=profile)


@pytest.fixture(scope="session")
def bf16(replicas: dict[str, ReplicaCapability]) -> ReplicaCapability:
    return replicas["bf16"]


@pytest.fixture(scope="session")
def small(bf16: ReplicaCapability) -> ReplicaCapability:
    """So little KV cache that sequences are preempted."""
    limits = ReplicaLimits(token_budget=512, max_sequences=48, max_waiting=400)
    return replace(bf16, kv_capacity_tokens=12_000, limits=limits)


@pytest.fixture(scope="session")
def fleet(terms: FleetTerms) -> FleetTerms:
    """Two variants that start in 20 s."""
    replicas = {name: replace(terms.replicas[name], cold_start_s=20.0) for name in ("bf16", "int4")}
    bounds = {name: VariantBounds(min=0, max=8) for name in replicas}
    classes = {name: terms.classes[name] for name in ("interactive", "standard", "throughput")}
    return FleetTerms(replicas=replicas, bounds=bounds, classes=classes, budget_replicas=6)
