"""After the warm-up no route compiles anything."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numba
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster import prediction_kernel
from cluster.accelerators import accelerator_named
from cluster.cost_model import CostModel
from cluster.load import Load
from cluster.model_shape import ModelShape
from cluster.prediction import ReplicaLimits
from cluster.route_warm_up import warm_up_routes
from cluster.routing import Choice, Refusal, RouteQuery, SloRouter
from cluster.slo import SloLimits
from cluster.variants import Variant

LIMITS = ReplicaLimits(token_budget=2048, max_sequences=64, max_waiting=64)
CLASSES = (
    SloLimits(name="interactive", ttft_ms=500, tpot_ms=40, fallback="degrade"),
    SloLimits(name="standard", fallback="queue", deadline_s=20, min_quality=0.9),
    SloLimits(name="batch", objective="throughput", fallback="reject"),
)


def signatures() -> Mapping[str, int]:
    found: dict[str, Any] = vars(prediction_kernel)
    return {n: len(f.signatures) for n, f in found.items() if isinstance(f, numba.core.dispatcher.Dispatcher)}


def models_of(shape: ModelShape) -> dict[str, CostModel]:
    gpu = accelerator_named("H100-80G")
    variants = (Variant(name="bf16", quality=1.0), Variant(name="int4", method="gptq", quality=0.96))
    return {variant.name: CostModel(shape, variant, gpu) for variant in variants}


SHAPE = ModelShape(
    name="small", architecture="llama", layers=4, hidden=512, heads=8, kv_heads=4, head_dim=64, ffn=1024, vocab=1000,
    tied_embeddings=False, max_positions=4096,
)  # fmt: skip
MODELS = models_of(SHAPE)
warm_up_routes(MODELS, LIMITS, CLASSES)


@given(
    st.integers(0, 3000),
    st.floats(1, 1000),
    st.sampled_from(CLASSES),
    st.sampled_from([None, "bf16", "int4"]),
    st.lists(st.tuples(st.sampled_from(["bf16", "int4"]), st.integers(0, 80), st.integers(0, 90_000)), max_size=5),
    st.floats(1e-6, 1e4),
)
@settings(max_examples=60, deadline=None)
def test_no_route_compiles_anything(
    prompt: int, output: float, slo: SloLimits, named: str | None, loads: list[tuple[str, int, int]], ttft_ms: float
) -> None:
    compiled = signatures()  # others' tests may have more compiled since
    router = SloRouter(MODELS, LIMITS)
    for number, (variant, requests, tokens) in enumerate(loads):
        load = Load(
            replica_id=f"{number}", variant=variant, measured_at_s=0.0, kv_tokens_capacity=65536,
            kv_tokens_used=min(tokens, 65536), decode_sequences=requests, throughput_sequences=requests // 2,
            waiting_requests=requests // 3, waiting_prefill_tokens=tokens // 2,
        )  # fmt: skip
        router.update(load, 0.0)
    limits = replace(slo, ttft_ms=ttft_ms) if slo.ttft_ms else slo
    query = RouteQuery(
        slo=limits, prompt_tokens=prompt, expected_output_tokens=output, model_variant=named, prefix=(1, 2)
    )
    found = router.choose(query, 0.5)
    assert isinstance(found, Choice | Refusal)
    if isinstance(found, Choice):
        router.dispatched(found.replica_id, "r", prompt, 10, 0.5, 40.0, prefix=(1, 2), objective=slo.objective)
        router.choose(query, 0.6)
    assert signatures() == compiled
