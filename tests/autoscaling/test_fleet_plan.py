"""The cheapest plan: never beyond the budget, never less for more demand, never a variant below a class's floor."""

from __future__ import annotations

import time
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from autoscaling.demand import ClassDemand
from autoscaling.fleet_plan import FleetTerms, VariantBounds, cheapest_plan, plan_within
from autoscaling.sustained import ReplicaCapability
from cluster.slo import SloLimits

HEADROOM = 0.15


def demand_of(slo_class: str, rate: float, prompt: float = 1155, output: float = 211) -> ClassDemand:
    return ClassDemand(slo_class=slo_class, rate_per_s=rate, prompt_tokens=prompt, output_tokens=output)


def test_no_demand_keeps_the_minima(terms: FleetTerms) -> None:
    some = replace(terms, bounds={**terms.bounds, "bf16": VariantBounds(min=1, max=4)})
    assert cheapest_plan([], terms, HEADROOM).replicas == {"bf16": 0, "fp8": 0, "int4": 0}
    assert cheapest_plan([], some, HEADROOM).replicas == {"bf16": 1, "fp8": 0, "int4": 0}


def test_the_cheapest_variant_above_the_floor_is_taken(terms: FleetTerms) -> None:
    plan = cheapest_plan([demand_of("standard", 100)], terms, HEADROOM)
    assert plan.shares == {"standard": {"fp8": 1.0}}
    assert plan.replicas["bf16"] == plan.replicas["int4"] == 0
    exact = cheapest_plan([demand_of("exact", 100)], terms, HEADROOM)
    assert exact.shares == {"exact": {"bf16": 1.0}}


def test_the_replicas_follow_from_the_arithmetic_that_is_told(terms: FleetTerms) -> None:
    plan = cheapest_plan([demand_of("standard", 100)], terms, HEADROOM)
    (load,) = plan.loads
    full = 100 / load.classes[0].sustained.rate_per_s
    assert full / (1 - HEADROOM) <= plan.replicas["fp8"] < full / (1 - HEADROOM) + 1
    assert f"-> {plan.replicas['fp8']} replicas" in plan.arithmetic()
    assert "bound by" in plan.arithmetic()


def test_little_demand_shares_a_replica_where_floors_allow(terms: FleetTerms) -> None:
    plan = cheapest_plan([demand_of("standard", 0.5), demand_of("exact", 0.5)], terms, HEADROOM)
    assert plan.replicas == {"bf16": 1, "fp8": 0, "int4": 0}


def test_a_class_that_no_variant_may_serve_is_named(replicas: dict[str, ReplicaCapability], terms: FleetTerms) -> None:
    only_int4 = replace(terms, replicas={"int4": replicas["int4"]}, bounds={"int4": VariantBounds(min=0, max=8)})
    plan = cheapest_plan([demand_of("standard", 5), demand_of("interactive", 5)], only_int4, HEADROOM)
    assert plan.unserved == ("standard",)
    assert plan.replicas["int4"] >= 1
    assert "standard: no variant keeps its limits and its quality floor" in plan.arithmetic()


def test_a_class_whose_limits_no_variant_keeps_is_counted_all_the_same(terms: FleetTerms) -> None:
    """Its requests come, whatever it was promised: without them the fleet would be too small for the others, too."""
    hopeless = replace(terms, classes={"standard": SloLimits(name="standard", ttft_ms=1, tpot_ms=1)})
    plan = cheapest_plan([demand_of("standard", 100)], hopeless, HEADROOM)
    assert plan.unserved == ()
    assert "beyond its TTFT and TPOT" in plan.arithmetic()
    unlimited = replace(terms, classes={"standard": SloLimits(name="standard")})
    assert plan.replicas == cheapest_plan([demand_of("standard", 100)], unlimited, HEADROOM).replicas


def test_a_class_that_degrades_takes_what_there_is(replicas: dict[str, ReplicaCapability], terms: FleetTerms) -> None:
    classes = {"interactive": SloLimits(name="interactive", ttft_ms=500, min_quality=0.99, fallback="degrade")}
    only_int4 = replace(
        terms, replicas={"int4": replicas["int4"]}, bounds={"int4": VariantBounds(min=0, max=8)}, classes=classes
    )
    assert cheapest_plan([demand_of("interactive", 5)], only_int4, HEADROOM).unserved == ()


def test_bursts_are_served_within_the_ttft_limit(terms: FleetTerms) -> None:
    steady = demand_of("interactive", 20)
    plan = cheapest_plan([replace(steady, burst=400)], terms, HEADROOM)
    (load,) = plan.loads
    served_per_s = load.needed * (1 - HEADROOM) * load.classes[0].burst_rate_per_s
    assert served_per_s * (0.5 + 0.5) >= 400, "half a second of arriving, half a second of the limit"
    assert load.needed > cheapest_plan([steady], terms, HEADROOM).loads[0].needed
    assert "bursts of 400 in 0.5 s, to be served within 1.0 s" in plan.arithmetic()
    patient = replace(demand_of("standard", 20), burst=400)
    assert cheapest_plan([patient], terms, HEADROOM).loads[0].needed < load.needed, "its limit is 2 s"
    unhurried = replace(demand_of("throughput", 20), burst=400)
    assert cheapest_plan([unhurried], terms, HEADROOM) == replace(
        cheapest_plan([demand_of("throughput", 20)], terms, HEADROOM),
        loads=cheapest_plan([unhurried], terms, HEADROOM).loads,
    )


@settings(max_examples=40, deadline=None)
@given(burst=st.integers(min_value=0, max_value=3000), more=st.integers(min_value=0, max_value=3000))
def test_a_larger_burst_never_needs_fewer(terms: FleetTerms, burst: int, more: int) -> None:
    plans = [
        cheapest_plan([replace(demand_of("interactive", 20), burst=size)], terms, HEADROOM)
        for size in (burst, burst + more)
    ]
    assert plans[0].cost_per_s <= plans[1].cost_per_s
    assert sum(plans[1].replicas.values()) <= terms.budget_replicas


def test_a_budget_that_binds_is_told(terms: FleetTerms) -> None:
    plan = cheapest_plan([demand_of("standard", 500)], replace(terms, budget_replicas=4), HEADROOM)
    assert sum(plan.replicas.values()) == 4
    assert plan.short > 0
    assert f"{plan.short} replicas short of the demand" in plan.arithmetic()


def test_a_fleet_that_only_grows_keeps_what_it_has(terms: FleetTerms) -> None:
    plan = cheapest_plan([demand_of("standard", 100)], terms, HEADROOM, at_least={"bf16": 3})
    assert plan.replicas["bf16"] >= 3
    assert plan_within([demand_of("standard", 100)], terms, HEADROOM, plan.replicas) is not None


demands = st.lists(
    st.builds(
        demand_of,
        st.sampled_from(["interactive", "standard", "exact", "throughput"]),
        st.floats(min_value=0.01, max_value=300),
        st.floats(min_value=10, max_value=6000),
        st.floats(min_value=1, max_value=1500),
    ),
    max_size=4,
    unique_by=lambda entry: entry.slo_class,
)


@settings(max_examples=80, deadline=None)
@given(demand=demands, budget=st.integers(min_value=0, max_value=40), headroom=st.floats(min_value=0, max_value=0.5))
def test_never_beyond_the_budget_nor_below_what_the_demand_needs(
    terms: FleetTerms, demand: list[ClassDemand], budget: int, headroom: float
) -> None:
    plan = cheapest_plan(demand, replace(terms, budget_replicas=budget), headroom)
    assert sum(plan.replicas.values()) <= budget
    if not plan.short:
        for load in plan.loads:
            assert plan.replicas[load.variant] >= load.needed
            # What it holds of KV at that rate fits: Little's law, B sequences of their mean length in each replica.
            for part in load.classes:
                held = part.sustained.batch * (part.mix.prompt_tokens + part.mix.output_tokens / 2)
                assert held <= 1.06 * terms.replicas[load.variant].kv_capacity_tokens


@settings(max_examples=80, deadline=None)
@given(demand=demands, factor=st.floats(min_value=1, max_value=3), index=st.integers(min_value=0, max_value=3))
def test_more_demand_never_costs_less(terms: FleetTerms, demand: list[ClassDemand], factor: float, index: int) -> None:
    roomy = replace(
        terms, bounds={name: VariantBounds(min=0, max=10_000) for name in terms.bounds}, budget_replicas=100_000
    )
    more = [
        replace(entry, rate_per_s=entry.rate_per_s * factor) if place == index else entry
        for place, entry in enumerate(demand)
    ]
    assert cheapest_plan(more, roomy, HEADROOM).cost_per_s >= cheapest_plan(demand, roomy, HEADROOM).cost_per_s


@settings(max_examples=80, deadline=None)
@given(demand=demands)
def test_no_class_is_planned_below_its_floor(terms: FleetTerms, demand: list[ClassDemand]) -> None:
    plan = cheapest_plan(demand, terms, HEADROOM)
    for slo_class, shares in plan.shares.items():
        limits = terms.classes[slo_class]
        for variant in shares:
            quality = terms.replicas[variant].model.variant.quality
            assert quality is not None
            assert limits.fallback == "degrade" or quality >= limits.min_quality


def test_the_time_of_a_decision_is_no_loop_over_replicas(terms: FleetTerms) -> None:
    """1,000 replicas take as long as one: the figure itself is a benchmark's."""
    roomy = replace(terms, bounds={name: VariantBounds(min=0, max=2000) for name in terms.bounds}, budget_replicas=2000)
    small, large = ([demand_of(name, rate) for name in terms.classes] for rate in (1.0, 4000.0))
    times = []
    for demand in (small, large):
        cheapest_plan(demand, roomy, HEADROOM)
        started_s = time.process_time()
        for _ in range(20):
            plan = cheapest_plan(demand, roomy, HEADROOM)
        times.append(time.process_time() - started_s)
    assert sum(plan.replicas.values()) > 300
    assert times[1] < 10 * times[0] + 0.5
