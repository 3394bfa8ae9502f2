"""build: the Serve application of a fleet, which `serve run` and `serve deploy` import too; it starts nothing."""

from __future__ import annotations

from collections.abc import Mapping

from ray import serve
from ray.serve.config import RequestRouterConfig
from ray.serve.schema import LoggingConfig

from cluster.config import FleetConfig
from serve_app.blueprint import Blueprint, VariantPlan
from serve_app.ingress import NUM_INGRESSES, ingress_class
from serve_app.replica import Replica
from serve_app.replica_pin import ReplicaPin

MAX_ONGOING_REQUESTS = 100_000
"""Far above what any replica admits: the engine decides, not Serve's queue (whose default is 5)."""
GRACEFUL_SHUTDOWN_S = 20.0
HEALTH_CHECK_PERIOD_S = 1.0
HEALTH_CHECK_TIMEOUT_S = 10.0


def build(args: Mapping[str, str]) -> serve.Application:
    """`serve run serve_app.app:build config=fleet.yaml`; without `config` as every command does."""
    blueprint = Blueprint.of(FleetConfig.load(args.get("config")))
    for variant in blueprint.variants:
        blueprint = blueprint.measured(variant)
    return application(blueprint)


def application(blueprint: Blueprint) -> serve.Application:
    """One deployment a variant, one ingress before them all."""
    replicas = {name: _variant(name, plan) for name, plan in blueprint.variants.items()}
    ingress = serve.deployment(
        ingress_class(),
        name="ingress",
        num_replicas=NUM_INGRESSES,
        max_ongoing_requests=MAX_ONGOING_REQUESTS,
        graceful_shutdown_timeout_s=GRACEFUL_SHUTDOWN_S,
        ray_actor_options={"num_cpus": 0},
        logging_config=LoggingConfig(enable_access_log=False),
    )
    return ingress.bind(blueprint, replicas)


def _variant(name: str, plan: VariantPlan) -> serve.Application:
    """The engine's threads are counted by the planner, so Ray reserves no cores: it would only refuse to start them."""
    deployment = serve.deployment(
        Replica,
        name=name,
        num_replicas=plan.num_replicas,
        max_ongoing_requests=MAX_ONGOING_REQUESTS,
        graceful_shutdown_timeout_s=GRACEFUL_SHUTDOWN_S,
        graceful_shutdown_wait_loop_s=0.5,
        health_check_period_s=HEALTH_CHECK_PERIOD_S,
        health_check_timeout_s=HEALTH_CHECK_TIMEOUT_S,
        ray_actor_options={"num_cpus": 0, "num_gpus": plan.spec.num_gpus},
        request_router_config=RequestRouterConfig(request_router_class=ReplicaPin),
        logging_config=LoggingConfig(enable_access_log=False),
    )
    return deployment.bind(plan.spec)
