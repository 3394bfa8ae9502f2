"""build: the Serve application of a fleet, which `serve run` and `serve deploy` import too; it starts nothing."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import ray
from ray import serve
from ray.serve.config import AutoscalingConfig, RequestRouterConfig

from autoscaling.policy import INGRESS
from cluster.config import FleetConfig
from engine.profiling import ensure_profile
from serve_app.batches.job_key import new_job_key
from serve_app.blueprint import Blueprint, VariantPlan
from serve_app.ingress import NUM_INGRESSES, ingress_class
from serve_app.logs import serve_logging
from serve_app.metrics.meter import meter_of
from serve_app.replica import Replica
from serve_app.replica_pin import ReplicaPin
from serve_app.span_export import require_exporter

MAX_ONGOING_REQUESTS = 100_000
"""Far above what any replica admits: the engine decides, not Serve's queue (whose default is 5)."""
INGRESS_SHUTDOWN_S = 20.0
SHUTDOWN_MARGIN_S = 20.0
"""Beside the longest stream: until the ingresses have heard of it, and for the engine to end."""
METRICS_INTERVAL_S = 1.0
"""How often replicas and ingresses tell the scaling policy of themselves. Serve 2.60 deprecates the key for
RAY_SERVE_*_METRIC_PUSH_INTERVAL_S and does not read those yet; its default of 10 s would let a burst wait."""
LOOK_BACK_S = 10.0
SOME_OF_A_RESOURCE = 0.001
"""It says where, not how many: GPUs are counted as such."""
HEALTH_CHECK_PERIOD_S = 1.0
HEALTH_CHECK_TIMEOUT_S = 10.0


def build(args: Mapping[str, str]) -> serve.Application:
    """`serve run serve_app.app:build config=fleet.yaml`; without `config` as every command does. It then keeps every
    variant at its min, since a scaling policy is not the application's to choose; `blueprint`: as JSON, with one."""
    if "blueprint" in args:
        return application(Blueprint.from_json(args["blueprint"]))
    return application(_measured(FleetConfig.load(args.get("config")).fixed()))


def build_scaled(args: Mapping[str, str]) -> serve.Application:
    """With `autoscaling_policy: {policy_function: "serve_app.file_policy:FilePolicy", policy_kwargs: {config: FILE}}`
    beside it, as a config file of `serve deploy` or KubeRay's serveConfigV2 says it; `args: {config: FILE}`."""
    return application(_measured(FleetConfig.load(args["config"])))


def _measured(config: FleetConfig) -> Blueprint:
    """With speed profiles; those of a GPU are measured on a node that has one and kept in a cache that all share."""
    require_exporter(config.tracing)
    blueprint = Blueprint.of(config)
    for variant, plan in blueprint.variants.items():
        if plan.spec.num_gpus:
            measure = ray.remote(**actor_options(blueprint, plan), max_calls=1)(ensure_profile)
            ray.get(measure.remote(plan.spec))
        blueprint = blueprint.measured(variant)
    return blueprint


def application(blueprint: Blueprint) -> serve.Application:
    """One deployment a variant, one ingress before them all."""
    replicas = {name: _variant(blueprint, name, plan) for name, plan in blueprint.variants.items()}
    ingress = serve.deployment(
        ingress_class(),
        name=INGRESS,
        **_scale(blueprint, NUM_INGRESSES, NUM_INGRESSES),
        max_ongoing_requests=MAX_ONGOING_REQUESTS,
        graceful_shutdown_timeout_s=INGRESS_SHUTDOWN_S,
        ray_actor_options={"num_cpus": 0},
        logging_config=serve_logging(blueprint.config.logging),
    )
    return ingress.bind(blueprint, replicas, new_job_key())


def actor_options(blueprint: Blueprint, plan: VariantPlan) -> dict[str, Any]:
    """What of a node a replica takes. The engine's threads are counted by the planner, so Ray reserves no cores: it
    would only refuse to start them."""
    resource = blueprint.config.accelerator.resource
    return {
        "num_cpus": 0,
        "num_gpus": plan.spec.num_gpus,
        "resources": {} if resource is None else {resource: SOME_OF_A_RESOURCE},
    }


def _variant(blueprint: Blueprint, name: str, plan: VariantPlan) -> serve.Application:
    deployment = serve.deployment(
        Replica,
        name=name,
        **_scale(blueprint, plan.num_replicas, blueprint.config.replicas(name).max),
        max_ongoing_requests=MAX_ONGOING_REQUESTS,
        # A replica that is stopped ends when its streams have, and after so long whatever they are at.
        graceful_shutdown_timeout_s=blueprint.longest_stream_s(name) + SHUTDOWN_MARGIN_S,
        graceful_shutdown_wait_loop_s=0.5,
        health_check_period_s=HEALTH_CHECK_PERIOD_S,
        health_check_timeout_s=HEALTH_CHECK_TIMEOUT_S,
        ray_actor_options=actor_options(blueprint, plan),
        request_router_config=RequestRouterConfig(request_router_class=ReplicaPin),
        logging_config=serve_logging(blueprint.config.logging),
    )
    return deployment.bind(plan.spec, meter_of(blueprint.config))


def _scale(blueprint: Blueprint, least: int, most: int) -> dict[str, Any]:
    """A number of replicas, or the bounds that the policy keeps to; what has no bounds, it is not told of."""
    if not blueprint.config.is_autoscaled:
        return {"num_replicas": least}
    # The planner waits as long as it should; Serve's own delays of 30 s and 10 minutes are for its own policy.
    own = {} if blueprint.config.autoscaling.dry_run else {"upscale_delay_s": 0.0, "downscale_delay_s": 0.0}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        scaling = AutoscalingConfig(
            min_replicas=least,
            initial_replicas=least,
            max_replicas=most,
            metrics_interval_s=METRICS_INTERVAL_S,
            look_back_period_s=LOOK_BACK_S,
            **own,
        )
    return {"autoscaling_config": scaling}
