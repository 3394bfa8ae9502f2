"""What the scaling policy is made from, the policy as Serve carries it to its controller, and a dry run there."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from ray import cloudpickle
from ray.serve._private.common import DeploymentID, ReplicaID, TimeStampedValue
from ray.serve.config import AutoscalingConfig, AutoscalingContext

from autoscaling.fleet_description import FleetDescription
from autoscaling.scaling import ScalingDecision
from cluster.config import FleetConfig
from cluster.models import cache_dir
from cluster.routing import SloRouter
from serve_app import serving_policy
from serve_app.app import application, build
from serve_app.blueprint import Blueprint
from serve_app.cold_starts import add_cold_start
from serve_app.decision_board import Posted, packed, unpacked
from serve_app.decision_feed import DecisionFeed
from serve_app.scaling_terms import cold_start_path, decision_log_path, fleet_description, serve_policy

FLEET: dict[str, Any] = {
    "model": {"name": "small", "source": "embedded:smollm2-135m"},
    "variants": {"bf16": {"method": "none"}, "int8": {"method": "int8", "quality": 0.97}},
    "engine": {"max_context": 1024, "num_threads": 1},
    "autoscaling": {"replicas": {"bf16": {"min": 1, "max": 1}, "int8": {"min": 0, "max": 2}}, "hold_s": 12},
}


def config_of(**autoscaling: Any) -> FleetConfig:
    return FleetConfig.of(FLEET | {"autoscaling": FLEET["autoscaling"] | autoscaling})


@pytest.fixture(scope="module")
def blueprint() -> Blueprint:
    return Blueprint.of(config_of())


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("QUANTFLEET_CACHE", str(tmp_path))
    return tmp_path


def test_an_autoscaled_fleet_plans_for_its_fullest_and_starts_with_its_minima(blueprint: Blueprint) -> None:
    assert {name: plan.num_replicas for name, plan in blueprint.variants.items()} == {"bf16": 1, "int8": 0}
    assert blueprint.budget_replicas == 3
    shares = {plan.spec.share for plan in blueprint.variants.values()}
    assert shares == {1 / blueprint.accelerator.cores}


def test_a_blueprint_goes_to_json_and_back(blueprint: Blueprint) -> None:
    again = Blueprint.from_json(blueprint.to_json())
    assert again == blueprint
    assert build({"blueprint": blueprint.to_json()})._bound_deployment.name == "ingress"


def test_every_deployment_of_an_autoscaled_fleet_has_bounds(blueprint: Blueprint) -> None:
    ingress = application(blueprint)._bound_deployment
    bound = {name: app._bound_deployment for name, app in ingress.init_args[1].items()}
    scales = {name: deployment._deployment_config.autoscaling_config for name, deployment in bound.items()}
    assert {name: (scale.min_replicas, scale.max_replicas) for name, scale in scales.items()} == {
        "bf16": (1, 1),
        "int8": (0, 2),
    }
    assert ingress._deployment_config.autoscaling_config.max_replicas == 1
    assert all(scale.upscale_delay_s == scale.downscale_delay_s == 0 for scale in scales.values())
    assert all(scale.metrics_interval_s == 1 for scale in scales.values())


def test_a_fixed_fleet_has_none_and_starts_no_variant_without_a_minimum() -> None:
    ingress = application(Blueprint.of(config_of(enabled=False)))._bound_deployment
    assert list(ingress.init_args[1]) == ["bf16"]
    variant = ingress.init_args[1]["bf16"]._bound_deployment
    assert variant._deployment_config.autoscaling_config is None
    assert variant.num_replicas == 1


def test_a_stopped_replica_has_longer_than_its_longest_stream(blueprint: Blueprint) -> None:
    spec = blueprint.variants["int8"].spec
    alone_s = spec.max_context * blueprint.cost_models()["int8"].decode_step_s(1, spec.max_context // 2)
    assert blueprint.longest_stream_s("int8") > 2 * alone_s
    variant = application(blueprint)._bound_deployment.init_args[1]["int8"]._bound_deployment
    assert variant._deployment_config.graceful_shutdown_timeout_s > blueprint.longest_stream_s("int8")


def test_the_policy_is_described_in_json(blueprint: Blueprint, tmp_path: Path) -> None:
    policy = json.loads(json.dumps(serve_policy(blueprint, tmp_path / "log.jsonl")))
    description = msgspec.convert(policy["policy_kwargs"]["fleet"], FleetDescription)
    assert description == fleet_description(blueprint)
    assert description.settings.demand.hold_s == 12
    assert (description.variants["int8"].bounds.min, description.variants["int8"].bounds.max) == (0, 2)
    assert set(description.classes) == {"interactive", "standard", "exact", "throughput"}


def test_cold_starts_that_were_measured_are_planned_with(blueprint: Blueprint, own_cache: Path) -> None:
    add_cold_start(cold_start_path(blueprint.variants["int8"].spec), 4.5)
    assert fleet_description(blueprint).variants["int8"].cold_start_s == 4.5
    given = replace(blueprint, config=config_of(cold_start_s=9))
    assert {terms.cold_start_s for terms in fleet_description(given).variants.values()} == {9}


@pytest.mark.parametrize(("log", "ending"), [("auto", "decisions/small-8000.jsonl"), ("mine.jsonl", "mine.jsonl")])
def test_the_log_lies_where_it_is_told(blueprint: Blueprint, log: str, ending: str) -> None:
    path = decision_log_path(replace(blueprint, config=config_of(log=log)))
    assert path is not None
    assert path.is_absolute()
    assert path.as_posix().endswith(ending)
    assert path.is_relative_to(cache_dir()) == (log == "auto")
    assert decision_log_path(replace(blueprint, config=config_of(log=None))) is None


def test_the_policy_is_pickled_by_value_as_serve_does() -> None:
    cloudpickle.register_pickle_by_value(serving_policy)
    try:
        carried = cloudpickle.loads(cloudpickle.dumps(serving_policy.ServingPolicy))
    finally:
        cloudpickle.unregister_pickle_by_value(serving_policy)
    assert carried.__name__ == "ServingPolicy"


def context_of(name: str, running: int, stats: dict[str, float]) -> AutoscalingContext:
    deployment = DeploymentID(name=name, app_name="quantfleet")
    ids = [ReplicaID(unique_id=f"{name}-{index}", deployment_id=deployment) for index in range(running)]
    return AutoscalingContext(
        deployment_id=deployment,
        deployment_name=name,
        app_name="quantfleet",
        current_num_replicas=running,
        target_num_replicas=running,
        running_replicas=ids,
        total_num_requests=1.0,  # Serve's own count: a channel, whatever streams in it
        total_queued_requests=0,
        aggregated_metrics={},
        raw_metrics={key: {id: [TimeStampedValue(0.0, value)] for id in ids} for key, value in stats.items()},
        capacity_adjusted_min_replicas=0,
        capacity_adjusted_max_replicas=8,
        policy_state={},
        last_scale_up_time=None,
        last_scale_down_time=None,
        current_time=0.0,
        config=AutoscalingConfig(min_replicas=0, max_replicas=8, target_ongoing_requests=2),
    )


def test_ongoing_requests_are_what_replicas_say_and_wake_what_sleeps() -> None:
    contexts = {
        "int8": context_of("int8", 2, {"decode_sequences": 5.0, "waiting_requests": 3.0}),
        "bf16": context_of("bf16", 0, {}),
        "ingress": context_of("ingress", 1, {"waiting": 2.0}),
    }
    assert serving_policy.by_ongoing_requests(contexts, "int8") == 8  # 16 requests, 2 to a replica
    assert serving_policy.by_ongoing_requests(contexts, "bf16") == 1
    contexts["ingress"] = context_of("ingress", 1, {"waiting": 0.0})
    assert serving_policy.by_ongoing_requests(contexts, "bf16") == 0


async def test_the_router_follows_what_is_posted_and_tells_it(blueprint: Blueprint) -> None:
    followed: list[Any] = []
    router = SloRouter(blueprint.cost_models(), blueprint.limits)
    router.follow = lambda shares, until_s: followed.append(shares)  # type: ignore[method-assign]
    decision = ScalingDecision(replicas={"int8": 2}, shares={"standard": {"int8": 1.0}}, reason="grows: ...")
    posted = Posted(at_s=5.0, decision=decision, dry_run=False, log_path="/log")
    feed = DecisionFeed(_never, router, interval_s=10)
    assert feed.describe() is None
    feed._take(None)
    for _ in range(2):
        feed._take(packed(posted))
    assert followed == [{"standard": {"int8": 1.0}}]
    feed._take(packed(replace(posted, at_s=15.0, dry_run=True)))
    assert len(followed) == 1
    told = feed.describe()
    assert told is not None
    assert (told["reason"], told["replicas"], told["dry_run"]) == ("grows: ...", {"int8": 2}, True)
    assert unpacked(packed(posted)) == posted


async def _never() -> None:
    return None
