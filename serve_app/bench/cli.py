"""The commands `bench replay` and `bench observability`; they import what they need when they run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

PIPE_COLUMNS = 150
"""Of output that goes to a file: tables are not to be folded into 80."""


def register_bench(bench: typer.Typer) -> None:
    bench.command("replay")(bench_replay)
    bench.command("observability")(bench_observability)


def bench_replay(
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for summary.json.")],
    config: Annotated[
        Path | None, typer.Argument(help="The running fleet's fleet.yaml; without it ./fleet.yaml, else the built-in.")
    ] = None,
    url: Annotated[str, typer.Option(help="Of the fleet's API.")] = "http://127.0.0.1:8000/v1",
    key: Annotated[
        str | None, typer.Option(envvar="QUANTFLEET_API_KEY", help="API key, where the fleet asks for one.")
    ] = None,
    trace: Annotated[Path | None, typer.Option(help="A trace of requests, as `simulate` reads it.")] = None,
    generate: Annotated[str | None, typer.Option(help="Made-up traffic, as `simulate` makes it.")] = None,
    rate: Annotated[float, typer.Option(help="So many times as many requests a second.")] = 1.0,
    warm_up: Annotated[float, typer.Option(help="Seconds of the same traffic before, that count for nothing.")] = 0.0,
    classes: Annotated[str, typer.Option(help="Share of each SLO class.")] = "standard=1",
    seed: Annotated[int, typer.Option(help="Of classes and made-up traffic.")] = 0,
    name: Annotated[str | None, typer.Option(help="In tables; the folder's name, if not given.")] = None,
    compare: Annotated[list[Path] | None, typer.Option(help="Folders of other runs to show beside this one.")] = None,
) -> None:
    """Send a trace's requests to a running fleet at their times, and sum up what came of them as `simulate` does.

    `simulate` with the same trace, classes and seed predicts this very run.
    """
    import asyncio

    from rich.console import Console

    from autoscaling.simulator.fleet_setup import described
    from autoscaling.simulator.summary import RunLabel, read_summary, write_summary
    from autoscaling.simulator.summary_table import summary_tables
    from autoscaling.simulator.traffic_options import classed, requested
    from cluster.config import FleetConfig
    from serve_app.bench.replay import replay_against, summarised

    fleet = FleetConfig.load(config)
    arrivals = classed(requested(trace, generate, seed), fleet, classes, seed=seed, rate=rate, warm_up_s=warm_up)
    others = [read_summary(folder) for folder in compare or ()]
    description = described(fleet, None, only=None, profiles=None, cold_start_s={})
    max_context = min(fleet.engine.max_context, description.shape.max_positions)
    console = Console()
    if not console.is_terminal:
        console.width = PIPE_COLUMNS
    with console.status("sending"):
        sending = replay_against(url, key, arrivals(), description, max_context=max_context, warm_up_s=warm_up)
        replayed = asyncio.run(sending)
    label = RunLabel(
        name=name or output.resolve().name,
        policy="a running fleet",
        model=description.model,
        accelerator=description.accelerator.name,
        traffic=trace.name if trace is not None else generate or "",
        rate=rate,
        seed=seed,
        max_context=max_context,
    )
    summary = summarised(replayed, description, label)
    output.mkdir(parents=True, exist_ok=True)
    write_summary(summary, output)
    console.print(*summary_tables([summary, *others]), sep="\n", highlight=False)
    for mistake, count in replayed.mistakes.most_common():
        console.print(f"{count} not answered: {mistake}", highlight=False)
    for variant, each in summary.variants.items():
        if each.step_time_ratio is not None:
            console.print(
                f"{variant}: steps took {each.step_time_ratio:.2f} times what was predicted;"
                f" `simulate --step-time-ratio {variant}={each.step_time_ratio:.2f}` counts with it",
                highlight=False,
            )
    console.print(f"sent at most {replayed.worst_lag_s * 1e3:.0f} ms late", highlight=False)


def bench_observability(
    config: Annotated[
        Path | None, typer.Argument(help="fleet.yaml; without it ./fleet.yaml, else the built-in.")
    ] = None,
    num_pairs: Annotated[int, typer.Option("--pairs", help="Runs with metrics, and as many without.")] = 7,
    streams: Annotated[int, typer.Option(help="Requests at a time.")] = 8,
    requests: Annotated[int, typer.Option(help="Of each stream, one after another, in each run.")] = 10,
) -> None:
    """Measure what metrics cost: output tokens a second of fleets with and without them, in turn."""
    from rich.console import Console

    from cluster.config import FleetConfig
    from serve_app.bench.observability import Load, observability_table, pairs

    console = Console()
    found = []
    with console.status("starting fleets and ending them"):
        for pair in pairs(FleetConfig.load(config), Load(streams=streams, requests=requests), num_pairs):
            found.append(pair)
            console.print(f"{pair.on:.1f} tokens/s with metrics, {pair.off:.1f} without", highlight=False)
    console.print(observability_table(found))
