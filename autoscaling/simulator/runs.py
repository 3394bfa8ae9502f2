"""A simulated run as its summary, or into its folder with a log of decisions; it draws nothing and compares nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from autoscaling.decision_log import DecisionLog
from autoscaling.simulator.arrivals import Arrival
from autoscaling.simulator.comparison import Experiment, simulate
from autoscaling.simulator.fleet import Listener
from autoscaling.simulator.summary import RunLabel, RunSummary, summarised, write_summary

DECISIONS = "decisions.jsonl"


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """What arrives, and how it is told in reports."""

    name: str
    arrivals: Callable[[], Iterable[Arrival]]
    """The same each time; those of the warm-up come first."""
    rate: float
    warm_up_s: float
    seed: int


def run_into(folder: Path, name: str, experiment: Experiment, traffic: Traffic, *, target: float | None) -> RunSummary:
    """`target`: ongoing requests a replica, where the policy has one; None takes the best."""
    folder.mkdir(parents=True, exist_ok=True)
    log = DecisionLog(folder / DECISIONS, experiment.description) if experiment.policy == "kv-aware" else None
    on_decision = log.append if log is not None else None
    summary = summarised_run(name, experiment, traffic, target=target, on_decision=on_decision)
    write_summary(summary, folder)
    return summary


def summarised_run(
    name: str, experiment: Experiment, traffic: Traffic, *, target: float | None, on_decision: Listener | None = None
) -> RunSummary:
    """As `run_into`, and nothing is written."""
    finished = simulate(experiment, target=target, on_decision=on_decision)
    description = experiment.description
    label = RunLabel(
        name=name,
        policy=finished.policy,
        model=description.model,
        accelerator=description.accelerator.name,
        traffic=traffic.name,
        rate=traffic.rate,
        seed=traffic.seed,
        max_context=experiment.max_context,
    )
    return summarised(finished.run, label)
