"""FleetPolicy over Serve's own contexts, made by hand, in a virtual clock; replicas run after a cold start."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from ray.serve._private.common import DeploymentID, ReplicaID, TimeStampedValue
from ray.serve.config import AutoscalingContext

from autoscaling.decision_log import entries, replay
from autoscaling.demand import DemandSettings
from autoscaling.fleet_description import FleetDescription, VariantTerms
from autoscaling.fleet_plan import FleetTerms, VariantBounds
from autoscaling.kv_aware import KvAwareSettings
from autoscaling.policy import INGRESS, FleetPolicy
from autoscaling.scaling import ScalingDecision
from autoscaling.serving_stats import TrafficCounters, load_stats
from cluster.load import Load

APP = "quantfleet"
TICK_S = 0.5
COLD_START_S = 6.0
START_S = 1_800_000_000.0
SETTINGS = KvAwareSettings(interval_s=2.0, demand=DemandSettings(level_s=4.0, noise=0.0, hold_s=10.0, idle_s=30.0))


@dataclass
class Deployment:
    name: str
    target: int
    running: list[str]
    asked_s: list[float] = field(default_factory=list)
    number: int = 0


class Serving:
    """Serve's controller as the policy sees it: targets are followed, at once downwards and later upwards."""

    def __init__(self, policy: FleetPolicy, running: Mapping[str, int]) -> None:
        self.policy = policy
        self.now_s = START_S
        self.counters = self.new_counters()
        self.deployments = {
            name: Deployment(name=name, target=count, running=[f"{name}-{index}" for index in range(count)])
            for name, count in running.items()
        }
        self.ingress = "ingress-0"
        self.draining: dict[str, int] = {}
        self.queued: dict[tuple[str, str | None], int] = {}
        self.silent = False

    def new_counters(self) -> TrafficCounters:
        return TrafficCounters(["interactive", "standard"], ["bf16", "fp8"], "standard", clock=lambda: self.now_s)

    def counts(self) -> dict[str, int]:
        return {name: len(deployment.running) for name, deployment in self.deployments.items()}

    def targets(self) -> dict[str, int]:
        return {name: deployment.target for name, deployment in self.deployments.items()}

    def run(self, seconds: float, rate: float = 0.0, variant: str | None = None) -> None:
        """`rate`: requests a second, of 1155 prompt and 211 output tokens."""
        begun_s, sent = self.now_s, 0
        while self.now_s < begun_s + seconds:
            self.now_s += TICK_S
            while sent < rate * (self.now_s - begun_s):
                self.counters.arrived("standard", 1155, variant)
                self.counters.finished("standard", 211)
                sent += 1
            self.tick()

    def tick(self) -> None:
        for deployment in self.deployments.values():
            while deployment.asked_s and self.now_s - deployment.asked_s[0] >= COLD_START_S:
                deployment.asked_s.pop(0)
                deployment.number += 1
                deployment.running.append(f"{deployment.name}-new{deployment.number}")
        decisions, states = self.policy(self.contexts())
        assert states == {}
        for deployment_id, target in decisions.items():
            self._set(self.deployments[deployment_id.name], target)

    def contexts(self) -> dict[DeploymentID, AutoscalingContext]:
        made = [self._context(d.name, d.running, d.target, self._loads(d)) for d in self.deployments.values()]
        stats = {} if self.silent else self._stats()
        made.append(self._context(INGRESS, [self.ingress], 1, {self.ingress: stats}))
        return {context.deployment_id: context for context in made}

    def _stats(self) -> dict[str, float]:
        return self.counters.stats(waiting=sum(self.queued.values()), queued=self.queued, draining=self.draining)

    def _loads(self, deployment: Deployment) -> dict[str, dict[str, float]]:
        return {
            name: load_stats(
                Load(
                    replica_id=name,
                    variant=deployment.name,
                    measured_at_s=self.now_s,
                    kv_tokens_capacity=430_000,
                    kv_tokens_used=160,
                )
            )
            for name in deployment.running
        }

    def _set(self, deployment: Deployment, target: int) -> None:
        deployment.target = target
        missing = target - len(deployment.running) - len(deployment.asked_s)
        deployment.asked_s += [self.now_s] * missing
        for _ in range(-missing):
            (deployment.asked_s or deployment.running).pop()

    def _context(
        self, name: str, running: list[str], target: int, told: Mapping[str, Mapping[str, float]]
    ) -> AutoscalingContext:
        deployment = DeploymentID(name=name, app_name=APP)
        ids = {unique: ReplicaID(unique_id=unique, deployment_id=deployment) for unique in running}
        raw: dict[str, dict[ReplicaID, list[TimeStampedValue]]] = {}
        for unique, stats in told.items():
            for metric, value in stats.items():
                older = TimeStampedValue(self.now_s - 1, -1.0)
                raw.setdefault(metric, {})[ids[unique]] = [older, TimeStampedValue(self.now_s, value)]
        return AutoscalingContext(
            deployment_id=deployment,
            deployment_name=name,
            app_name=APP,
            current_num_replicas=len(running),
            target_num_replicas=target,
            running_replicas=list(ids.values()),
            total_num_requests=0,
            total_queued_requests=0,
            aggregated_metrics={},
            raw_metrics=lambda: raw,
            capacity_adjusted_min_replicas=0,
            capacity_adjusted_max_replicas=8,
            policy_state={},
            last_scale_up_time=None,
            last_scale_down_time=None,
            current_time=self.now_s,
            config=None,
        )


@pytest.fixture
def description(terms: FleetTerms) -> FleetDescription:
    replica = terms.replicas["fp8"]
    return FleetDescription(
        model="llama",
        shape=replica.model.shape,
        accelerator=replica.model.accelerator,
        variants={
            name: VariantTerms(
                variant=each.model.variant,
                share=1.0,
                kv_dtype="bf16",
                kv_capacity_tokens=each.kv_capacity_tokens,
                block_size=each.block_size,
                limits=each.limits,
                cold_start_s=COLD_START_S,
                bounds=VariantBounds(min=0, max=8),
            )
            for name, each in terms.replicas.items()
            if name in ("bf16", "fp8")
        },
        classes={name: terms.classes[name] for name in ("interactive", "standard")},
        budget_replicas=8,
        settings=SETTINGS,
    )


def policy_of(description: FleetDescription, **arguments: Any) -> FleetPolicy:
    """By way of JSON, as Serve brings it to its controller."""
    return FleetPolicy(fleet=msgspec.json.decode(msgspec.json.encode(description)), **arguments)


def with_minimum(description: FleetDescription, variant: str, least: int) -> FleetDescription:
    terms = description.variants[variant]
    raised = replace(terms, bounds=VariantBounds(min=least, max=8))
    return replace(description, variants={**description.variants, variant: raised})


def test_a_burst_makes_it_grow_and_its_end_makes_it_shrink(description: FleetDescription) -> None:
    serving = Serving(policy_of(with_minimum(description, "fp8", 1)), {"bf16": 0, "fp8": 1})
    serving.run(20, rate=1)
    assert serving.counts() == {"bf16": 0, "fp8": 1}
    serving.run(40, rate=40)
    assert serving.counts()["fp8"] > 1
    serving.run(60)
    assert serving.counts() == {"bf16": 0, "fp8": 1}


def test_it_decides_once_an_interval_and_keeps_the_targets_in_between(description: FleetDescription) -> None:
    told: list[float] = []
    policy = policy_of(description, on_decision=lambda now_s, _: told.append(now_s))
    serving = Serving(policy, {"bf16": 0, "fp8": 1})
    serving.run(20, rate=5)
    assert len(told) == pytest.approx(9, abs=1)
    before = serving.targets()
    decisions, _ = policy(serving.contexts())
    assert {id.name: target for id, target in decisions.items()} == before


def test_a_new_policy_keeps_what_runs_until_it_has_seen_enough(description: FleetDescription) -> None:
    """As after a restart of the controller, in a quiet moment."""
    serving = Serving(policy_of(description), {"bf16": 2, "fp8": 5})
    serving.run(SETTINGS.demand.hold_s - 1)
    assert serving.counts() == {"bf16": 2, "fp8": 5}
    serving.run(60)
    assert serving.counts() == {"bf16": 0, "fp8": 0}


def test_a_new_policy_grows_as_soon_as_it_has_seen_an_interval(description: FleetDescription) -> None:
    serving = Serving(policy_of(description), {"bf16": 0, "fp8": 1})
    serving.run(3 * SETTINGS.interval_s, rate=60)
    assert serving.targets()["fp8"] > 1


def test_what_an_ingress_counted_before_is_no_burst(description: FleetDescription) -> None:
    serving = Serving(policy_of(description), {"bf16": 0, "fp8": 1})
    for _ in range(100_000):
        serving.counters.arrived("standard", 1155, None)
    serving.now_s += 60
    serving.run(9, rate=1)
    assert serving.targets() == {"bf16": 0, "fp8": 1}


def test_a_new_ingress_counts_from_nothing(description: FleetDescription) -> None:
    serving = Serving(policy_of(description), {"bf16": 0, "fp8": 1})
    serving.run(20, rate=1)
    serving.ingress = "ingress-1"
    serving.counters = serving.new_counters()
    serving.run(10, rate=1)
    assert serving.targets() == {"bf16": 0, "fp8": 1}
    serving.run(20, rate=60)
    assert serving.targets()["fp8"] > 1


def test_without_a_word_from_an_ingress_nothing_changes(description: FleetDescription) -> None:
    serving = Serving(policy_of(description), {"bf16": 1, "fp8": 3})
    serving.silent = True
    serving.run(60)
    assert serving.counts() == {"bf16": 1, "fp8": 3}


def test_silence_ends_in_no_replica_and_a_request_wakes_one_at_once(description: FleetDescription) -> None:
    serving = Serving(policy_of(replace(description, settings=replace(SETTINGS, interval_s=10))), {"bf16": 0, "fp8": 1})
    serving.run(60)
    assert serving.counts() == {"bf16": 0, "fp8": 0}
    serving.run(5)
    serving.counters.arrived("standard", 1155, None)
    serving.run(2 * TICK_S)
    assert sum(serving.targets().values()) == 1
    serving.run(COLD_START_S)
    assert sum(serving.counts().values()) == 1


@pytest.mark.parametrize("variant", [None, "bf16", "fp8"])
def test_what_a_request_waits_for_is_not_called_off(description: FleetDescription, variant: str | None) -> None:
    """Its cold start may be longer than the time after which a class counts as idle."""
    demand = replace(SETTINGS.demand, idle_s=COLD_START_S / 3, hold_s=1)
    serving = Serving(policy_of(replace(description, settings=replace(SETTINGS, demand=demand))), {"bf16": 0, "fp8": 0})
    serving.run(10)
    serving.counters.arrived("standard", 1155, variant)
    serving.queued = {("standard", variant): 1}
    serving.run(COLD_START_S + 2 * TICK_S)
    assert sum(serving.counts().values()) >= 1
    assert variant is None or serving.counts()[variant] == 1
    serving.queued = {}
    serving.run(20)
    assert sum(serving.counts().values()) == 0


def test_a_request_that_names_a_variant_wakes_that_one(description: FleetDescription) -> None:
    serving = Serving(policy_of(with_minimum(description, "fp8", 1)), {"bf16": 0, "fp8": 1})
    serving.run(20, rate=1)
    serving.counters.arrived("standard", 1155, "bf16")
    serving.run(COLD_START_S + 4)
    assert serving.counts() == {"bf16": 1, "fp8": 1}
    serving.run(2 * SETTINGS.demand.idle_s)
    assert serving.counts() == {"bf16": 0, "fp8": 1}


def test_a_named_variant_does_not_pass_the_budget(description: FleetDescription) -> None:
    tight = replace(with_minimum(description, "fp8", 1), budget_replicas=1)
    serving = Serving(policy_of(tight), {"bf16": 0, "fp8": 1})
    serving.run(10, rate=1, variant="bf16")
    assert serving.targets() == {"bf16": 0, "fp8": 1}


def test_cold_starts_are_measured_from_asking_to_ready(description: FleetDescription) -> None:
    took: list[tuple[str, float]] = []
    policy = policy_of(description, on_ready=lambda variant, seconds: took.append((variant, seconds)))
    serving = Serving(policy, {"bf16": 0, "fp8": 1})
    # Two that started before this policy was there tell nothing.
    serving._set(serving.deployments["bf16"], 2)
    serving.run(COLD_START_S + 2)
    assert took == []
    serving.run(20, rate=60)
    assert took
    assert all(seconds == pytest.approx(COLD_START_S, abs=2 * TICK_S) for _, seconds in took)


def test_every_decision_is_logged_and_replays(description: FleetDescription, tmp_path: Path) -> None:
    path, told = tmp_path / "logs" / "decisions.jsonl", []
    policy = policy_of(
        with_minimum(description, "fp8", 1), log_path=str(path), on_decision=lambda _, decision: told.append(decision)
    )
    serving = Serving(policy, {"bf16": 0, "fp8": 1})
    serving.draining = {"fp8": 1}
    serving.run(20, rate=40)
    serving.run(60)
    logged = list(entries(path))
    assert [entry.decision for entry in logged] == told
    assert all(replayed.is_same for replayed in replay(path))
    assert sum(traffic.arrivals for entry in logged for traffic in entry.observation.traffic) > 700
    assert logged[0].observation.loads[0].kv_tokens_used == 160
    assert logged[0].observation.draining == {"bf16": 0, "fp8": 1}
    assert any(entry.observation.starting["fp8"] for entry in logged)


def test_a_log_that_is_there_is_kept_beside_the_new_one(description: FleetDescription, tmp_path: Path) -> None:
    path = tmp_path / "decisions.jsonl"
    for _ in range(2):
        serving = Serving(policy_of(description, log_path=str(path)), {"bf16": 0, "fp8": 1})
        serving.run(10, rate=1)
    assert len(list(tmp_path.iterdir())) == 2
    assert all(list(entries(log)) for log in tmp_path.iterdir())


def test_a_disk_that_refuses_costs_the_log_only(description: FleetDescription, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    decisions: list[ScalingDecision] = []
    policy = policy_of(
        description,
        log_path=str(tmp_path / "file" / "decisions.jsonl"),
        on_decision=lambda _, decision: decisions.append(decision),
    )
    Serving(policy, {"bf16": 0, "fp8": 1}).run(10, rate=1)
    assert decisions


def test_a_replica_that_has_said_nothing_yet_counts_as_running(description: FleetDescription, tmp_path: Path) -> None:
    path = tmp_path / "decisions.jsonl"
    serving = Serving(policy_of(description, log_path=str(path)), {"bf16": 0, "fp8": 2})
    serving._loads = lambda _: {}  # type: ignore[method-assign]
    serving.run(5, rate=1)
    (first, *_) = entries(path)
    assert [load.replica_id for load in first.observation.loads] == ["fp8-0", "fp8-1"]
    assert first.observation.loads[0].kv_tokens_capacity == 430_000
