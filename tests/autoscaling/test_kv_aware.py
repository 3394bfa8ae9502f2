"""KvAwarePolicy in a closed loop: replicas start after a cold start, traffic comes at a rate, decisions every 10 s."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoscaling.demand import ClassDemand, DemandSettings
from autoscaling.fleet_plan import FleetTerms, VariantBounds, plan_within
from autoscaling.kv_aware import KvAwarePolicy, KvAwareSettings
from autoscaling.scaling import ClassTraffic, FleetObservation, ScalingDecision
from cluster.load import Load

SETTINGS = KvAwareSettings(demand=DemandSettings(noise=0.0))
COLD_START_S = 40.0


class Loop:
    """A fleet that does as it is told; no request is simulated."""

    def __init__(self, terms: FleetTerms, started: Mapping[str, int] | None = None) -> None:
        self.policy = KvAwarePolicy(terms, SETTINGS)
        self.now_s = 0.0
        self.running = dict.fromkeys(terms.bounds, 0) | dict(started or {})
        self.starting: dict[str, list[float]] = {name: [] for name in terms.bounds}

    def step(self, rates: Mapping[str, float]) -> ScalingDecision:
        self.now_s += 10.0
        for name, since in self.starting.items():
            ready = [asked for asked in since if self.now_s - asked >= COLD_START_S]
            self.running[name] += len(ready)
            self.starting[name] = since[len(ready) :]
        decision = self.policy.decide(self._observation(rates))
        for name, target in decision.replicas.items():
            missing = target - self.running[name] - len(self.starting[name])
            self.starting[name] += [self.now_s] * missing
            for _ in range(-missing):
                if self.starting[name]:
                    self.starting[name].pop()
                else:
                    self.running[name] -= 1
        return decision

    def steps(self, rates: Mapping[str, float], count: int) -> list[dict[str, int]]:
        return [dict(self.step(rates).replicas) for _ in range(count)]

    def _observation(self, rates: Mapping[str, float]) -> FleetObservation:
        loads = [
            Load(
                replica_id=f"{name}-{index}",
                variant=name,
                measured_at_s=self.now_s,
                kv_tokens_capacity=430_000,
                kv_tokens_used=0,
            )
            for name, count in self.running.items()
            for index in range(count)
        ]
        return FleetObservation(
            now_s=self.now_s,
            loads=tuple(loads),
            starting={name: tuple(since) for name, since in self.starting.items()},
            draining={},
            traffic=tuple(traffic_of(name, rate) for name, rate in rates.items()),
        )


def traffic_of(name: str, rate: float) -> ClassTraffic:
    arrivals = round(10 * rate)
    return ClassTraffic(
        slo_class=name,
        arrivals=arrivals,
        window_s=10.0,
        prompt_tokens=1155 * arrivals,
        output_tokens=211 * arrivals,
        finished=arrivals,
        refused=0,
    )


def holds(terms: FleetTerms, rates: Mapping[str, float], replicas: Mapping[str, int]) -> bool:
    demand = [
        ClassDemand(slo_class=name, rate_per_s=rate, prompt_tokens=1155, output_tokens=211)
        for name, rate in rates.items()
        if rate
    ]
    return plan_within(demand, terms, 0.0, replicas) is not None


def changes(history: Sequence[Mapping[str, int]]) -> int:
    return sum(before != after for before, after in pairwise(history))


def test_a_burst_makes_it_grow_and_its_end_makes_it_shrink(terms: FleetTerms) -> None:
    loop = Loop(terms)
    low, high = {"standard": 5.0}, {"standard": 150.0}
    few = loop.steps(low, 30)[-1]
    many = loop.steps(high, 30)[-1]
    assert sum(many.values()) > 2 * sum(few.values())
    assert holds(terms, high, loop.running)
    assert loop.steps(low, 60)[-1] == few


def test_what_a_rise_made_it_grow_by_is_not_taken_back_at_once(terms: FleetTerms) -> None:
    """The rise is carried on, the arrivals are not: by the level alone it would shrink ten seconds later."""
    only = {name: VariantBounds(min=0, max=64 if name == "bf16" else 0) for name in terms.bounds}
    loop = Loop(replace(terms, bounds=only))
    for rate in (5.0, 5.0, 5.0, 20.0, 40.0, 60.0, 80.0):
        loop.step({"standard": rate})
    asked = loop.step({"standard": 100.0}).replicas["bf16"]
    hold = int(SETTINGS.demand.hold_s / 10)
    assert min(found["bf16"] for found in loop.steps({"standard": 10.0}, hold - 1)) >= asked
    assert loop.steps({"standard": 10.0}, hold)[-1]["bf16"] < asked


def test_it_says_what_binds(terms: FleetTerms) -> None:
    decision = Loop(terms).step({"standard": 100.0})
    assert decision.reason.startswith("grows: fp8: ")
    assert "bound by" in decision.reason


def test_replicas_that_start_are_counted(terms: FleetTerms) -> None:
    loop = Loop(terms)
    history = loop.steps({"standard": 100.0}, 4)
    assert all(sum(found.values()) <= sum(history[-1].values()) for found in history)
    assert sum(loop.running.values()) == 0


def test_nothing_is_swapped_before_what_replaces_it_runs(terms: FleetTerms) -> None:
    loop = Loop(terms, {"bf16": 12})
    rates = {"standard": 150.0}
    for _ in range(60):
        loop.step(rates)
        assert holds(terms, rates, loop.running)
    assert loop.running["bf16"] == 0
    assert loop.running["fp8"] > 0


def test_growth_to_other_variants_keeps_what_runs_until_they_do(terms: FleetTerms) -> None:
    """Two bf16 cannot hold it, a fresh fleet would be fp8 alone."""
    loop = Loop(terms, {"bf16": 2})
    for _ in range(60):
        decision = loop.step({"standard": 150.0})
        if loop.running["fp8"] == 0:
            assert decision.replicas["bf16"] >= 2
    assert (loop.running["bf16"], loop.running["fp8"] > 2) == (0, True)


def test_silence_ends_in_no_replica_and_a_request_wakes_one(terms: FleetTerms) -> None:
    loop = Loop(terms)
    loop.steps({"standard": 5.0}, 10)
    asleep = loop.steps({"standard": 0.0}, 60)
    assert asleep[10] != {"bf16": 0, "fp8": 0, "int4": 0}
    assert asleep[-1] == {"bf16": 0, "fp8": 0, "int4": 0}
    assert sum(loop.step({"standard": 0.1}).replicas.values()) == 1


def test_minima_hold_in_silence(terms: FleetTerms) -> None:
    kept = replace(terms, bounds={**terms.bounds, "bf16": VariantBounds(min=2, max=4)})
    assert Loop(kept).steps({"standard": 0.0}, 40)[-1]["bf16"] == 2


def test_growth_waits_for_what_drains(terms: FleetTerms) -> None:
    small = replace(terms, budget_replicas=4)
    observation = FleetObservation(
        now_s=10.0, loads=(), starting={}, draining={"bf16": 3}, traffic=(traffic_of("standard", 200.0),)
    )
    decision = KvAwarePolicy(small, SETTINGS).decide(observation)
    assert sum(decision.replicas.values()) == 1


rates_of_classes = st.fixed_dictionaries(
    {},
    optional={
        name: st.floats(min_value=0.1, max_value=200) for name in ("interactive", "standard", "exact", "throughput")
    },
)


@settings(max_examples=12, deadline=None)
@given(rates=rates_of_classes, started=st.dictionaries(st.sampled_from(["bf16", "fp8", "int4"]), st.integers(0, 12)))
def test_constant_demand_settles(terms: FleetTerms, rates: dict[str, float], started: dict[str, int]) -> None:
    """No two-cycle: once the lengths are learnt and what started runs, nothing changes any more."""
    loop = Loop(terms, started)
    loop.steps(rates, 120)
    assert changes(loop.steps(rates, 60)) == 0
    assert holds(terms, rates, loop.running)


@settings(max_examples=12, deadline=None)
@given(
    phases=st.lists(rates_of_classes, min_size=1, max_size=5),
    budget=st.integers(min_value=1, max_value=10),
)
def test_the_budget_is_never_passed(terms: FleetTerms, phases: list[dict[str, float]], budget: int) -> None:
    loop = Loop(replace(terms, budget_replicas=budget))
    for rates in phases:
        for _ in range(12):
            assert sum(loop.step(rates).replicas.values()) <= budget
            assert sum(loop.running.values()) + sum(map(len, loop.starting.values())) <= budget


@pytest.mark.parametrize("rate", [0.7, 7.0, 70.0])
def test_the_same_observations_give_the_same_decisions(terms: FleetTerms, rate: float) -> None:
    first, second = (Loop(terms).steps({"standard": rate, "exact": 1.0}, 40) for _ in range(2))
    assert first == second
