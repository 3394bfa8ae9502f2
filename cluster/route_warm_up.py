"""Routes made-up requests of every kind once, so that numba compiles what routing needs before a user's request does.

On two CPU cores that takes 4 s the first time and 0.3 s later: the machine code is kept in a cache on disk.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from cluster.cost_model import CostModel
from cluster.load import Load
from cluster.prediction import ReplicaLimits
from cluster.routing import RouteQuery, SloRouter
from cluster.slo import SloLimits

NEVER_KEPT_MS = 1e-6
KV_TOKENS = 65536


def warm_up_routes(models: Mapping[str, CostModel], limits: ReplicaLimits, classes: Iterable[SloLimits]) -> None:
    """By a router of its own, which knows one idle replica of each variant and one with a backlog."""
    router = SloRouter(models, limits)
    for variant in models:
        for waiting in (0, 1):
            router.update(_load(variant, waiting), 0.0)
    for slo in classes:
        hopeless = replace(slo, ttft_ms=NEVER_KEPT_MS, tpot_ms=NEVER_KEPT_MS)
        for wanted in (slo, hopeless):
            for named in (None, *models):
                query = RouteQuery(slo=wanted, prompt_tokens=100, expected_output_tokens=50.0, model_variant=named)
                router.choose(query, 0.0)
                router.choose(replace(query, expected_output_tokens=50), 0.0)


def _load(variant: str, waiting: int) -> Load:
    return Load(
        replica_id=f"{variant}-{waiting}",
        variant=variant,
        measured_at_s=0.0,
        kv_tokens_capacity=KV_TOKENS,
        kv_tokens_used=0,
        decode_sequences=waiting,
        waiting_requests=waiting,
        waiting_prefill_tokens=100 * waiting,
    )
