"""Times of a route and of a scaling decision on a made-up fleet, beside their bounds; it drives no replica."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import median

from autoscaling.fleet_description import FleetDescription
from autoscaling.scaling import ClassTraffic, FleetObservation
from cluster.cost_model import CostModel, StepShape
from cluster.load import Load
from cluster.profile import Profile, ProfileKey, ProfilePoint
from cluster.routing import Choice, RouteQuery, SloRouter

NUM_VARIANTS = 8
ROUTE_BOUND_S, DECISION_BOUND_S = 100e-6, 5e-3
ROUTES, DECISIONS = 2000, 60
IN_FLIGHT = 30
"""Requests of this router that run at a time; older ones end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    what: str
    num_replicas: int
    median_s: float
    bound_s: float | None
    """None where only the growth is of interest."""


def widened(fleet: FleetDescription) -> FleetDescription:
    """With eight variants of the fleet's kinds, each with a profile as long as a GPU's, a fifth above the roofline."""
    kinds = list(fleet.variants.values())
    variants = {}
    for number in range(NUM_VARIANTS):
        terms = kinds[number % len(kinds)]
        variant = replace(terms.variant, name=f"{terms.variant.name}-{number}")
        model = CostModel(fleet.shape, variant, fleet.accelerator, share=terms.share, kv_dtype=terms.kv_dtype)
        variants[variant.name] = replace(terms, variant=variant, profile=_profile(model, number))
    return replace(fleet, variants=variants)


def routes(fleet: FleetDescription, num_replicas: int, seed: int = 0) -> Figure:
    """The median route among so many replicas with loads of their own, one request after another."""
    draw, now_s = random.Random(seed), 0.0
    models = fleet.cost_models()
    limits = next(iter(fleet.variants.values())).limits
    router = SloRouter(models, limits, rng=random.Random(seed))
    names = list(models)
    for number in range(num_replicas):
        router.update(_load(fleet, names[number % len(names)], f"replica-{number}", draw), now_s)
    classes = list(fleet.classes.values())
    times_s: list[float] = []
    for number in range(ROUTES):
        query = RouteQuery(
            slo=classes[number % len(classes)], prompt_tokens=draw.randrange(50, 4000), expected_output_tokens=200.0
        )
        choice, took_s = _timed(lambda query=query: router.choose(query, now_s))  # type: ignore[misc]
        times_s.append(took_s)
        if isinstance(choice, Choice):
            router.dispatched(choice.replica_id, str(number), query.prompt_tokens, 400, now_s, query.slo.tpot_ms)
        router.finished(str(number - IN_FLIGHT))
    bound_s = ROUTE_BOUND_S if num_replicas == 64 else None
    return Figure(what="route", num_replicas=num_replicas, median_s=median(times_s), bound_s=bound_s)


def decisions(fleet: FleetDescription, num_replicas: int, seed: int = 0) -> Figure:
    """The median decision over traffic that changes, with so many replicas running."""
    draw = random.Random(seed)
    names = list(fleet.variants)
    bounds = {name: replace(terms.bounds, max=num_replicas) for name, terms in fleet.variants.items()}
    wide = replace(
        fleet,
        variants={name: replace(terms, bounds=bounds[name]) for name, terms in fleet.variants.items()},
        budget_replicas=2 * num_replicas,
    )
    policy, interval_s = wide.policy(), fleet.settings.interval_s
    loads = tuple(_load(wide, names[n % len(names)], f"replica-{n}", draw) for n in range(num_replicas))
    times_s = []
    for number in range(DECISIONS):
        arrivals = round(interval_s * num_replicas * draw.uniform(2, 6) / len(fleet.classes))
        traffic = tuple(
            ClassTraffic(
                slo_class=name,
                window_s=interval_s,
                arrivals=arrivals,
                prompt_tokens=arrivals * 1000,
                finished=arrivals,
                output_tokens=arrivals * 200,
                refused=0,
            )
            for name in fleet.classes
        )
        observation = FleetObservation(
            now_s=number * interval_s, loads=loads, starting={}, draining={}, traffic=traffic
        )
        times_s.append(_timed(lambda observation=observation: policy.decide(observation))[1])  # type: ignore[misc]
    return Figure(
        what="scaling decision", num_replicas=num_replicas, median_s=median(times_s), bound_s=DECISION_BOUND_S
    )


def _timed(call: Callable[[], object]) -> tuple[object, float]:
    started_s = time.perf_counter()
    result = call()
    return result, time.perf_counter() - started_s


def _load(fleet: FleetDescription, variant: str, replica_id: str, draw: random.Random) -> Load:
    return Load(
        replica_id=replica_id,
        variant=variant,
        measured_at_s=0.0,
        kv_tokens_capacity=fleet.variants[variant].kv_capacity_tokens,
        kv_tokens_used=draw.randrange(fleet.variants[variant].kv_capacity_tokens // 2),
        decode_sequences=draw.randrange(1, 150),
        waiting_requests=draw.randrange(3),
        waiting_prefill_tokens=draw.randrange(3000),
        prefill_tokens_per_s=5000.0,
        step_time_ratio=1.02,
        step_samples=50,
    )


def _profile(model: CostModel, seed: int) -> Profile:
    draw = random.Random(seed)
    key = ProfileKey(
        model="made-up", variant=model.variant.name, accelerator=model.accelerator.name, threads=1, versions={}
    )
    points = [ProfilePoint(shape=shape, step_s=draw.uniform(1.1, 1.3) * model.step_s(shape)) for shape in _shapes()]
    return Profile(key=key, points=tuple(points), measured_at="2026-01-01T00:00:00+00:00")


def _shapes() -> Sequence[StepShape]:
    """As many as engine.profile_trials has for a GPU."""
    decodes = [(batch, context) for batch in (1, 16, 64, 256) for context in (64, 512, 1280, 8192)]
    prompts = [(chunk, context) for chunk in (16, 64, 256, 1024, 4096) for context in (0, 2048)]
    both = [(batch, chunk) for batch in (8, 64, 200) for chunk in (64, 512)]
    return [
        *(StepShape(decode_sequences=batch, kv_tokens=batch * context) for batch, context in decodes),
        *(
            StepShape(decode_sequences=0, kv_tokens=0, prefill_tokens=chunk, prefill_context_tokens=context)
            for chunk, context in prompts
        ),
        *(StepShape(decode_sequences=batch, kv_tokens=batch * 512, prefill_tokens=chunk) for batch, chunk in both),
    ]
