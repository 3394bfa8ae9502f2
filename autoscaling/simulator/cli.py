"""The command `simulate`; it imports what it needs when it runs, and simulates nothing itself."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from autoscaling.fleet_description import FleetDescription
    from autoscaling.simulator.arrivals import Arrival, TracedRequest
    from autoscaling.simulator.comparison import PolicyName
    from autoscaling.simulator.summary import RunSummary

DEFAULT_CLASSES = "interactive=.6,standard=.3,throughput=.1"
DECISIONS = "decisions.jsonl"
REPORT = "report.html"


def register(app: typer.Typer) -> None:
    app.command("simulate")(simulate)


def simulate(
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for summary.json and report.html.")],
    trace: Annotated[
        Path | None, typer.Option(help="A trace of requests: Azure LLM inference, BurstGPT or Mooncake.")
    ] = None,
    generate: Annotated[
        str | None, typer.Option(help="Made-up traffic, such as poisson:rate=5,duration_s=3600,prompt=512,output=128.")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="fleet.yaml; without it ./fleet.yaml, else the built-in.")] = None,
    accelerator: Annotated[str | None, typer.Option(help="Simulate this hardware, such as H100-80G.")] = None,
    policy: Annotated[str, typer.Option(help="kv-aware, ongoing-requests (Ray Serve's) or fixed.")] = "kv-aware",
    replicas: Annotated[
        str | None, typer.Option(help="Replicas at the start, such as bf16=4,int4=2; other variants are left out.")
    ] = None,
    rate: Annotated[float, typer.Option(help="So many times as many requests a second.")] = 1.0,
    classes: Annotated[str, typer.Option(help="Share of each SLO class.")] = DEFAULT_CLASSES,
    seed: Annotated[int, typer.Option(help="Of classes, made-up traffic and the router's ties.")] = 0,
    profiles: Annotated[
        Path | None, typer.Option(help="Folder with measured profiles; without it the roofline tells step times.")
    ] = None,
    target_ongoing_requests: Annotated[
        str, typer.Option(help="Of a replica, for ongoing-requests; `best` tries several.")
    ] = "best",
    cold_start: Annotated[str, typer.Option(help="Seconds by variant, such as bf16=40,int4=25.")] = "",
    name: Annotated[
        str | None, typer.Option(help="Of this run in the report; the folder's name, if not given.")
    ] = None,
    compare: Annotated[list[Path] | None, typer.Option(help="Folders of other runs to show beside this one.")] = None,
) -> None:
    """A fleet in simulated time: the very router and policy of production over replicas that the cost model times."""
    from autoscaling.decision_log import DecisionLog
    from autoscaling.simulator.arrivals import parse_shares
    from autoscaling.simulator.comparison import Experiment
    from autoscaling.simulator.comparison import simulate as run_simulation
    from autoscaling.simulator.fleet_setup import described, parse_replicas, parse_seconds
    from autoscaling.simulator.report import html_report
    from autoscaling.simulator.summary import RunLabel, read_summary, summarised, write_summary, write_whole
    from cluster.config import FleetConfig
    from cluster.errors import UserError

    fleet = FleetConfig.load(config)
    wanted = _policy(policy, replicas)
    if not 0 < rate < float("inf"):
        raise UserError(f"--rate: {rate:g} is not above 0; 2 makes twice as many requests a second")
    counts = parse_replicas(replicas, fleet) if replicas is not None else None
    shares = parse_shares(classes, fleet.slo_classes)
    target = _target(target_ongoing_requests)
    description = described(fleet, accelerator, only=counts, profiles=profiles, cold_start_s=parse_seconds(cold_start))
    others = [read_summary(folder) for folder in compare or ()]
    experiment = Experiment(
        description=description,
        policy=wanted,
        initial=counts if counts is not None else _one_of_each(description),
        max_context=min(fleet.engine.max_context, description.shape.max_positions),
        seed=seed,
        arrivals=_arrivals(_requests(trace, generate, seed), shares, seed, rate),
    )
    output.mkdir(parents=True, exist_ok=True)
    on_decision = DecisionLog(output / DECISIONS, description).append if wanted == "kv-aware" else None
    finished = run_simulation(experiment, target=target, on_decision=on_decision)
    label = RunLabel(
        name=name or output.resolve().name,
        policy=finished.policy,
        model=description.model,
        accelerator=description.accelerator.name,
        traffic=trace.name if trace is not None else generate or "",
        rate=rate,
        seed=seed,
        max_context=experiment.max_context,
    )
    summary = summarised(finished.run, label)
    write_summary(summary, output)
    write_whole(output / REPORT, html_report([summary, *others]).encode())
    _show([summary, *others], output)


def _policy(name: str, replicas: str | None) -> PolicyName:
    from autoscaling.simulator.comparison import POLICIES
    from cluster.errors import UserError, did_you_mean

    for policy in POLICIES:
        if policy == name:
            if policy == "fixed" and replicas is None:
                raise UserError("--policy fixed: no replicas given; add --replicas bf16=4")
            return policy
    raise UserError(f"--policy: no policy {name!r}; {did_you_mean(name, POLICIES)}")


def _target(text: str) -> float | None:
    from cluster.errors import UserError

    if text == "best":
        return None
    try:
        target = float(text)
    except ValueError:
        target = 0.0
    if not 0 < target < float("inf"):
        raise UserError(f"--target-ongoing-requests: {text!r} is neither `best` nor a number above 0; give 32")
    return target


def _requests(trace: Path | None, generate: str | None, seed: int) -> Callable[[], Iterable[TracedRequest]]:
    """Read or checked now, so that a mistake is told before any work; given out as often as asked."""
    from autoscaling.simulator.generated import generate as generated
    from autoscaling.simulator.traces import read_trace
    from cluster.errors import UserError

    if (trace is None) == (generate is None):
        raise UserError("simulate: give either --trace FILE or --generate SPEC, such as poisson:rate=5,duration_s=3600")
    if trace is not None:
        requests = read_trace(trace)
        return lambda: requests
    assert generate is not None
    spec = generate
    generated(spec, seed)
    return lambda: generated(spec, seed)


def _arrivals(
    requests: Callable[[], Iterable[TracedRequest]], shares: dict[str, float], seed: int, rate: float
) -> Callable[[], Iterable[Arrival]]:
    from autoscaling.simulator.arrivals import arrivals

    return lambda: arrivals(requests(), shares, seed=seed, rate=rate)


def _one_of_each(description: FleetDescription) -> dict[str, int]:
    return {name: max(1, each.bounds.min) for name, each in description.variants.items() if each.bounds.max}


def _show(runs: list[RunSummary], output: Path) -> None:
    from rich.console import Console

    from autoscaling.simulator.summary_table import summary_tables

    console = Console()
    if not console.is_terminal:
        console.width = 150
    console.print(*summary_tables(runs), sep="\n", highlight=False)
    console.print(f"{output / REPORT} has the charts, {output / 'summary.json'} the figures", highlight=False)
