"""The options that describe a simulated fleet, --accelerator to --step-time-ratio, as an Experiment; it runs none."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from autoscaling.simulator.comparison import Experiment
from autoscaling.simulator.contenders import Contender
from autoscaling.simulator.fleet_setup import described, parse_ratios, parse_seconds
from autoscaling.simulator.runs import Traffic
from cluster.config import FleetConfig


def experiment_of(
    fleet: FleetConfig,
    contender: Contender,
    counts: Mapping[str, int] | None,
    traffic: Traffic,
    *,
    accelerator: str | None,
    profiles: Path | None,
    cold_start: str,
    step_time_ratio: str = "",
) -> Experiment:
    """`counts` of replicas at the start, and no other variants; None: those of the contender, one of each at least."""
    only = counts if counts is not None else dict.fromkeys(contender.variants, 0)
    description = described(
        fleet,
        accelerator,
        only=only,
        profiles=profiles,
        cold_start_s=parse_seconds(cold_start, fleet),
        step_time_ratio=parse_ratios(step_time_ratio, fleet),
    )
    bounds = {name: each.bounds for name, each in description.variants.items()}
    return Experiment(
        description=description,
        policy=contender.policy,
        initial=counts or {name: max(1, each.min) for name, each in bounds.items() if each.max},
        max_context=min(fleet.engine.max_context, description.shape.max_positions),
        seed=traffic.seed,
        arrivals=traffic.arrivals,
        warm_up_s=traffic.warm_up_s,
    )
