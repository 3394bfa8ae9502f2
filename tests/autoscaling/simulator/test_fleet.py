"""FleetSimulation: every request is answered or refused, replicas start cold and drain, and runs repeat."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest

from autoscaling.fleet_plan import FleetTerms
from autoscaling.scaling import FleetObservation, ScalingDecision, ScalingPolicy
from autoscaling.simulator.arrivals import Arrival, arrivals
from autoscaling.simulator.fleet import FleetSimulation, SimulatedRun, SimulationSettings
from autoscaling.simulator.generated import generate
from autoscaling.simulator.policies import FixedReplicas
from autoscaling.simulator.summary import RunLabel, summarised

SHARES = {"interactive": 0.6, "standard": 0.3, "throughput": 0.1}
SETTINGS = SimulationSettings(max_context=16384)
LABEL = RunLabel(
    name="run", policy="p", model="m", accelerator="H100-80G", traffic="t", rate=1, seed=0, max_context=16384
)


class Schedule:
    """A fleet by the clock, and what was observed."""

    def __init__(self, *steps: tuple[float, Mapping[str, int]]) -> None:
        self._steps = steps
        self.seen: list[FleetObservation] = []

    def decide(self, observation: FleetObservation) -> ScalingDecision:
        self.seen.append(observation)
        due = [replicas for at_s, replicas in self._steps if at_s <= observation.now_s]
        return ScalingDecision(replicas=due[-1], shares={}, reason="by the clock")


def traffic(spec: str = "poisson:rate=20,duration_s=30,prompt=800,output=150", seed: int = 0) -> list[Arrival]:
    return list(arrivals(generate(spec, seed), SHARES, seed=seed))


def run(
    terms: FleetTerms,
    policy: ScalingPolicy,
    initial: Mapping[str, int],
    requests: Sequence[Arrival],
    *,
    settings: SimulationSettings = SETTINGS,
    most_repeats: int | None = None,
) -> SimulatedRun:
    simulation = FleetSimulation(terms, policy, settings, initial=initial, most_repeats=most_repeats)
    return simulation.run(requests)


def fixed(terms: FleetTerms, requests: Sequence[Arrival], **replicas: int) -> SimulatedRun:
    return run(terms, FixedReplicas(replicas), replicas, requests)


def test_a_fleet_large_enough_keeps_every_limit(fleet: FleetTerms) -> None:
    requests = traffic()
    found = summarised(fixed(fleet, requests, bf16=3, int4=1), LABEL)
    assert found.offered == len(requests)
    assert found.attainment == 1.0
    assert found.refused == found.too_long == 0
    assert found.classes["standard"].answered_by.keys() == {"bf16"}, "int4 is below its floor"
    assert found.gpu_hours == pytest.approx(4 * found.duration_s / 3600)
    assert found.cost == pytest.approx(4 * found.duration_s * 2.69 / 3600)
    assert 0 < found.classes["interactive"].ttft_ms.p50 < found.classes["interactive"].ttft_ms.p99 < 500


def test_the_same_seed_gives_the_same_run_bit_for_bit(fleet: FleetTerms) -> None:
    requests = traffic("gamma:rate=30,cv=3,duration_s=20,prompt=900,output=200")
    first = summarised(fixed(fleet, requests, bf16=1, int4=1), LABEL)
    assert first == summarised(fixed(fleet, requests, bf16=1, int4=1), LABEL)


def test_fast_forward_equals_step_by_step(fleet: FleetTerms) -> None:
    """Through router, refusals and a growing fleet."""
    requests = traffic("gamma:rate=35,cv=3,duration_s=20,prompt=900,output=100")
    found = []
    for most_repeats in (None, 1):
        policy = Schedule((0.0, {"bf16": 1, "int4": 1}), (10.0, {"bf16": 2, "int4": 1}))
        found.append(summarised(run(fleet, policy, {"bf16": 1, "int4": 1}, requests, most_repeats=most_repeats), LABEL))
    fast, slow = found
    for name, each in slow.classes.items():
        assert fast.classes[name].met == each.met
        assert fast.classes[name].answered_by == each.answered_by
        assert fast.classes[name].ttft_ms.p99 == pytest.approx(each.ttft_ms.p99, rel=1e-6)
        assert fast.classes[name].tpot_ms.p50 == pytest.approx(each.tpot_ms.p50, rel=1e-6)
    assert fast.gpu_hours == pytest.approx(slow.gpu_hours, rel=1e-9)


def test_more_than_a_fleet_holds_is_queued_and_refused(fleet: FleetTerms) -> None:
    requests = traffic("poisson:rate=60,duration_s=5,prompt=6000,output=100")
    found = summarised(fixed(fleet, requests, bf16=1), LABEL)
    assert found.refused > 0
    for name, each in found.classes.items():
        answered = sum(each.answered_by.values())
        assert each.offered == answered + each.refused, name
        assert each.met <= answered
    assert found.attainment < 0.9
    assert found.classes["standard"].ttft_ms.p99 < 30_000, "given up after its deadline of 20 s"


def test_longer_than_the_context_is_refused_and_told(fleet: FleetTerms) -> None:
    requests = [
        Arrival(0.0, 16_000, 300, "standard"),
        Arrival(0.0, 16_100, 300, "standard"),
        Arrival(0.1, 100, 10, "interactive"),
    ]
    found = summarised(fixed(fleet, requests, bf16=1), LABEL)
    assert (found.too_long, found.refused, found.longest_tokens) == (1, 1, 16_400)
    assert found.classes["standard"].too_long == 1


def test_an_answer_below_the_floor_is_a_miss(fleet: FleetTerms) -> None:
    """A class that degrades is served in time by what has too little quality, and has missed."""
    classes = {**fleet.classes, "interactive": replace(fleet.classes["interactive"], min_quality=0.97)}
    terms = replace(fleet, classes=classes)
    requests = [Arrival(float(index), 500, 50, "interactive") for index in range(10)]
    found = summarised(fixed(terms, requests, int4=1), LABEL).classes["interactive"]
    assert (found.met, found.below_floor, found.refused) == (0, 10, 0)


def test_a_cold_start_is_paid_and_waited_for(fleet: FleetTerms) -> None:
    requests = traffic("poisson:rate=5,duration_s=60")
    policy = Schedule((0.0, {"bf16": 1}), (20.0, {"bf16": 2}))
    found = run(fleet, policy, {"bf16": 1}, requests)
    second = found.replicas.members[1]
    assert second.asked_s == 20.0
    history = {
        each.at_s: (each.running.get("bf16", 0), each.starting.get("bf16", 0)) for each in found.replicas.history
    }
    assert history == {0.0: (1, 0), 20.0: (1, 1), 40.0: (2, 0)}
    assert [len(seen.loads) for seen in policy.seen[:5]] == [1, 1, 1, 2, 2]
    assert policy.seen[2].starting == {"bf16": (20.0,)}
    assert found.held_s() == found.held_s("bf16") == pytest.approx(2 * found.ended_s - 20.0)


def test_a_drained_replica_ends_its_streams_and_takes_no_more(fleet: FleetTerms) -> None:
    requests = traffic("poisson:rate=10,duration_s=60,prompt=500,output=900")
    policy = Schedule((0.0, {"bf16": 2}), (30.0, {"bf16": 1}))
    found = run(fleet, policy, {"bf16": 2}, requests)
    drained = next(member for member in found.replicas.members if member.ended_s is not None)
    assert drained.ended_s > 32.0, "answers take some seconds"
    assert any(seen.draining == {"bf16": 1} for seen in policy.seen)
    assert summarised(found, LABEL).refused == 0
    assert summarised(found, LABEL).offered == sum(
        sum(each.answered_by.values()) for each in found.ledger.classes.values()
    )


def test_what_starts_is_given_up_first_and_the_budget_holds(fleet: FleetTerms) -> None:
    policy = Schedule((0.0, {"bf16": 20, "int4": 20}), (20.0, {"bf16": 1, "int4": 0}), (40.0, {"bf16": 8}))
    found = run(fleet, policy, {"bf16": 1}, traffic("poisson:rate=3,duration_s=60"))
    assert found.replicas.most_held == fleet.budget_replicas == 6
    given_up = [member for member in found.replicas.members if member.ended_s == 20.0]
    assert len(given_up) == 5
    assert all(member.replica.busy_s == 0 for member in given_up)


def test_traffic_is_counted_at_arrival(fleet: FleetTerms) -> None:
    policy = Schedule((0.0, {"bf16": 1}))
    requests = traffic("poisson:rate=30,duration_s=35,prompt=1500,output=200")
    found = run(fleet, policy, {"bf16": 1}, requests)
    windows = [each for seen in policy.seen for each in seen.traffic]
    until_s = policy.seen[-1].now_s
    counted = [request for request in requests if request.at_s < until_s]
    assert sum(window.arrivals for window in windows) == len(counted)
    assert sum(window.prompt_tokens for window in windows) == sum(request.prompt_tokens for request in counted)
    assert {window.window_s for window in windows} == {10.0}
    assert sum(window.finished + window.refused for window in windows) <= len(found.decisions) + len(requests)
