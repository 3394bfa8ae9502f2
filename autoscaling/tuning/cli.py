"""The command `tune`; it imports what it needs when it runs, and searches nothing itself."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from autoscaling.simulator.cli import DEFAULT_CLASSES

if TYPE_CHECKING:
    from autoscaling.simulator.runs import Traffic
    from autoscaling.tuning.halves import Half, TunedFleet
    from autoscaling.tuning.objective import Objective
    from autoscaling.tuning.outcome import Outcome
    from autoscaling.tuning.search import Trial
    from cluster.config import FleetConfig

PIPE_COLUMNS = 150
"""Of output that goes to a file: tables are not to be folded into 80."""


def register(app: typer.Typer) -> None:
    app.command("tune")(tune)


def tune(
    objective: Annotated[
        str, typer.Option(help="Such as `cost subject to attainment>=0.99`; attainment is the lowest class's.")
    ],
    trace: Annotated[
        Path | None, typer.Option(help="A trace of requests: Azure LLM inference, BurstGPT or Mooncake.")
    ] = None,
    generate: Annotated[
        str | None, typer.Option(help="Made-up traffic, such as poisson:rate=5,duration_s=3600,prompt=512,output=128.")
    ] = None,
    trials: Annotated[int, typer.Option(min=1, help="The first is the default settings.")] = 40,
    config: Annotated[Path | None, typer.Option(help="fleet.yaml; without it ./fleet.yaml, else the built-in.")] = None,
    accelerator: Annotated[str | None, typer.Option(help="Simulate this hardware, such as H100-80G.")] = None,
    rate: Annotated[float, typer.Option(help="So many times as many requests a second.")] = 1.0,
    warm_up: Annotated[
        float, typer.Option(help="Seconds of traffic before each half, that count for nothing.")
    ] = 300.0,
    classes: Annotated[str, typer.Option(help="Share of each SLO class.")] = DEFAULT_CLASSES,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Of the search, classes and made-up traffic.")] = 0,
    profiles: Annotated[
        Path | None, typer.Option(help="Folder with measured profiles; without it the roofline tells step times.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="The fleet.yaml with the best settings, and the evidence.")
    ] = None,
) -> None:
    """Search the planner's settings that serve a trace best, with the simulator; judged on a half it did not see."""
    from autoscaling.simulator.runs import Traffic
    from autoscaling.simulator.traffic_options import check_numbers, classed, requested
    from autoscaling.tuning.halves import halves
    from autoscaling.tuning.objective import parse_objective
    from autoscaling.tuning.outcome import Source, judged, sha256_of
    from cluster.config import FleetConfig

    wanted = parse_objective(objective)
    check_numbers(rate, warm_up)
    fleet = FleetConfig.load(config)
    if output is not None:
        _check_output(output, config)
    requests = requested(trace, generate, seed)
    traffic = Traffic(
        name=trace.name if trace is not None else generate or "",
        arrivals=classed(requests, fleet, classes, seed=seed, rate=rate, warm_up_s=0.0),
        rate=rate,
        warm_up_s=0.0,
        seed=seed,
    )
    first, second = halves(traffic, warm_up)
    tuned = _tuned_fleet(fleet, traffic, accelerator, profiles)
    source = Source(
        name=traffic.name,
        sha256=sha256_of(trace, requests()),
        num_requests=first.num_requests + second.num_requests,
        rate=rate,
        classes=classes,
        warm_up_s=warm_up,
        half_s=first.duration_s,
        model=tuned.experiment.description.model,
        accelerator=tuned.experiment.description.accelerator.name,
        step_times=f"step times of {profiles}" if profiles is not None else "step times by the roofline",
        seed=seed,
    )
    found = _searched(tuned, first, wanted, trials=trials, seed=seed)
    _conclude(judged(found, wanted, source, lambda each: tuned.figures(each, second)), config, output)


def _check_output(output: Path, config: Path | None) -> None:
    """Before any work: whether the file can be written, and the settings into it."""
    from autoscaling.tuning.fleet_file import check_editable, fleet_text
    from cluster.errors import UserError

    if output.is_dir():
        raise UserError(f"-o {output}: is a folder; name a file in it, such as {output / 'fleet.yaml'}")
    if not output.resolve().parent.is_dir():
        raise UserError(f"-o {output}: no folder {output.parent}; make it first")
    check_editable(fleet_text(config))


def _tuned_fleet(fleet: FleetConfig, traffic: Traffic, accelerator: str | None, profiles: Path | None) -> TunedFleet:
    from autoscaling.simulator.contenders import Contender
    from autoscaling.simulator.experiment_options import experiment_of
    from autoscaling.tuning.halves import TunedFleet
    from cluster.errors import UserError

    every = Contender(name="tuned", variants=tuple(fleet.variants), policy="kv-aware")
    experiment = experiment_of(fleet, every, None, traffic, accelerator=accelerator, profiles=profiles, cold_start="")
    if all(each.bounds.min == each.bounds.max for each in experiment.description.variants.values()):
        name = next(iter(fleet.variants))
        raise UserError(
            f"autoscaling.replicas: the min of every variant is its max, so no setting changes anything;"
            f" give one room, such as {name}: {{min: 0, max: 4}}"
        )
    return TunedFleet(section=fleet.autoscaling, experiment=experiment)


def _searched(tuned: TunedFleet, half: Half, objective: Objective, *, trials: int, seed: int) -> list[Trial]:
    """With a progress bar on stderr that names the best so far."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from autoscaling.tuning.outcome import standing
    from autoscaling.tuning.search import best_first, search
    from autoscaling.tuning.search_space import settings_of

    columns = (
        TextColumn("trials"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.description}"),
    )
    done: list[Trial] = []
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("", total=trials)

        def tell(trial: Trial) -> None:
            done.append(trial)
            best = best_first(done, objective)[0]
            figure = f"{objective.goal} {best.figures.named(objective.goal):.6g}, {standing(best.figures, objective)}"
            progress.update(task, advance=1, description=f"best: trial {best.number}, {figure}")

        return search(
            lambda settings: tuned.figures(settings, half),
            objective,
            settings_of(tuned.section),
            trials=trials,
            seed=seed,
            on_trial=tell,
        )


def _conclude(outcome: Outcome, config: Path | None, output: Path | None) -> None:
    from rich.console import Console

    from autoscaling.simulator.summary import write_whole
    from autoscaling.tuning.fleet_file import fleet_text, tuned_text
    from autoscaling.tuning.outcome import evidence, standing, verdict
    from autoscaling.tuning.outcome_table import outcome_table
    from cluster.errors import UserError

    console = Console()
    if not console.is_terminal:
        console.width = PIPE_COLUMNS
    console.print(outcome_table(outcome), *verdict(outcome), sep="\n", highlight=False)
    best = outcome.best[0].trial
    if outcome.objective.broken_by(best.figures):
        raise UserError(
            f"--objective {str(outcome.objective)!r}: none of {outcome.trials} trials keeps it on the first half, the"
            f" best {standing(best.figures, outcome.objective)} with attainment {best.figures.attainment:.4f}; nothing"
            " written; give a lower bound, more --trials, a larger autoscaling.budget or a longer --warm-up (requests"
            " longer than engine.max_context miss in any case)"
        )
    if output is None:
        return
    text = tuned_text(fleet_text(config), best.settings, list(evidence(outcome)))
    try:
        write_whole(output.resolve(), text.encode())
    except OSError as error:
        raise UserError(f"-o {output}: cannot be written ({error.strerror}); name a file elsewhere") from None
    console.print(f"{output} has the best settings, and the evidence at its end", highlight=False)
