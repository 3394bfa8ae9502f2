"""The command `simulate`; it imports what it needs when it runs, and simulates nothing itself."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from autoscaling.simulator.contenders import Contender
    from autoscaling.simulator.summary import RunSummary
    from cluster.config import FleetConfig

DEFAULT_CLASSES = "interactive=.6,standard=.3,throughput=.1"
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
    fleets: Annotated[
        str | None,
        typer.Option(help="Several fleets one after another, such as mixed:kv-aware,bf16:ongoing-requests."),
    ] = None,
    replicas: Annotated[
        str | None, typer.Option(help="Replicas at the start, such as bf16=4,int4=2; other variants are left out.")
    ] = None,
    rate: Annotated[float, typer.Option(help="So many times as many requests a second.")] = 1.0,
    warm_up: Annotated[
        float, typer.Option(help="Seconds of the same traffic, come round before, that count for nothing.")
    ] = 0.0,
    classes: Annotated[str, typer.Option(help="Share of each SLO class.")] = DEFAULT_CLASSES,
    seed: Annotated[int, typer.Option(help="Of classes, made-up traffic and the router's ties.")] = 0,
    profiles: Annotated[
        Path | None, typer.Option(help="Folder with measured profiles; without it the roofline tells step times.")
    ] = None,
    target_ongoing_requests: Annotated[
        str, typer.Option(help="Of a replica, for ongoing-requests; `best` tries several.")
    ] = "best",
    cold_start: Annotated[str, typer.Option(help="Seconds by variant, such as bf16=40,int4=25.")] = "",
    step_time_ratio: Annotated[
        str,
        typer.Option(help="Steps of a running fleet over the profile's, such as bf16=1.2; `bench replay` tells it."),
    ] = "",
    name: Annotated[
        str | None, typer.Option(help="Of this run in the report; the folder's name, if not given.")
    ] = None,
    compare: Annotated[list[Path] | None, typer.Option(help="Folders of other runs to show beside this one.")] = None,
) -> None:
    """A fleet in simulated time: the very router and policy of production over replicas that the cost model times."""
    from autoscaling.simulator.experiment_options import experiment_of
    from autoscaling.simulator.fleet_setup import parse_replicas
    from autoscaling.simulator.report import html_report
    from autoscaling.simulator.runs import Traffic, run_into
    from autoscaling.simulator.summary import read_summary, write_whole
    from autoscaling.simulator.traffic_options import check_numbers, classed, requested
    from cluster.config import FleetConfig

    fleet = FleetConfig.load(config)
    contenders = _contenders(fleet, policy, replicas, fleets, name or output.resolve().name)
    check_numbers(rate, warm_up)
    counts = parse_replicas(replicas, fleet) if replicas is not None else None
    arrivals = classed(requested(trace, generate, seed), fleet, classes, seed=seed, rate=rate, warm_up_s=warm_up)
    traffic = Traffic(
        name=trace.name if trace is not None else generate or "",
        arrivals=arrivals,
        rate=rate,
        warm_up_s=warm_up,
        seed=seed,
    )
    experiments = [
        experiment_of(
            fleet,
            each,
            counts,
            traffic,
            accelerator=accelerator,
            profiles=profiles,
            cold_start=cold_start,
            step_time_ratio=step_time_ratio,
        )
        for each in contenders
    ]
    target = _target(target_ongoing_requests)
    others = [read_summary(folder) for folder in compare or ()]
    summaries = [
        run_into(output / each.name if fleets is not None else output, each.name, experiment, traffic, target=target)
        for each, experiment in zip(contenders, experiments, strict=True)
    ]
    write_whole(output / REPORT, html_report([*summaries, *others]).encode())
    _show([*summaries, *others], output)


def _contenders(
    fleet: FleetConfig, policy: str, replicas: str | None, fleets: str | None, name: str
) -> list[Contender]:
    from autoscaling.simulator.contenders import Contender, parse_contenders, policy_named
    from cluster.errors import UserError

    if fleets is not None:
        if replicas is not None:
            raise UserError("--fleets: --replicas is of one fleet; give --warm-up, so that each finds its size first")
        return parse_contenders(fleets, fleet.variants)
    wanted = policy_named(policy, "--policy")
    if wanted == "fixed" and replicas is None:
        raise UserError("--policy fixed: no replicas given; add --replicas bf16=4")
    return [Contender(name=name, variants=tuple(fleet.variants), policy=wanted)]


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


def _show(runs: list[RunSummary], output: Path) -> None:
    from rich.console import Console

    from autoscaling.simulator.summary_table import summary_tables

    console = Console()
    if not console.is_terminal:
        console.width = 150
    console.print(*summary_tables(runs), sep="\n", highlight=False)
    console.print(f"{output / REPORT} has the charts, the folders' summary.json the figures", highlight=False)
