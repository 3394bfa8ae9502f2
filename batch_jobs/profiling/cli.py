"""The command `profile`: options in, profiles, tables and a picture out; it imports what it needs when it runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from cluster.engine_spec import EngineSpec
    from cluster.profile import Profile

HELD_OUT_STEPS = 24
TYPICAL_CONTEXT = 512
PIPE_COLUMNS = 150
"""Of output that goes to a file: tables are not to be folded into 80."""


def register(app: typer.Typer) -> None:
    app.command("profile")(profile)


def profile(
    config: Annotated[
        Path | None, typer.Argument(help="fleet.yaml; without it ./fleet.yaml, else the built-in.")
    ] = None,
    variant: Annotated[list[str] | None, typer.Option(help="Variants; all of the configuration, if not given.")] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="Also write all of them into one JSON file; one that is there already is read, unless --force.",
        ),
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help=f"Measure {HELD_OUT_STEPS} other steps, and compare with what is predicted.")
    ] = False,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw latency and throughput over the batch size, as PNG.")
    ] = None,
    context: Annotated[
        int, typer.Option(min=1, help="Tokens a sequence typically holds, for B_best and the picture.")
    ] = TYPICAL_CONTEXT,
    force: Annotated[bool, typer.Option("--force", help="Measure anew although FILE is there.")] = False,
    dummy: Annotated[
        bool, typer.Option("--dummy", help="Made-up weights in the shape of model.source/config.json; on a GPU only.")
    ] = False,
) -> None:
    """Measure how long the steps of each variant take on this machine: what serve, plan and simulate predict with."""
    from rich.console import Console

    from batch_jobs.profiling.check import check as checked
    from batch_jobs.profiling.picture import draw
    from batch_jobs.profiling.specs import Measured, specs_of
    from batch_jobs.profiling.tables import check_table, errors_table, profiles_table
    from cluster.config import FleetConfig
    from cluster.profile import read_profiles, save_profiles
    from engine.profile_trials import held_out_trials
    from engine.profiling import measured_on

    console = Console()
    if not console.is_terminal:
        console.width = PIPE_COLUMNS
    shape, specs = specs_of(FleetConfig.load(config), variant or (), made_up=dummy)
    known = read_profiles(output) if output is not None and output.exists() and not force else []
    measured: list[Measured] = []
    for spec in specs:
        with console.status(f"measuring {spec.variant.name}"):
            measured.append(Measured(spec=spec, shape=shape, profile=_profile(spec, known)))
    if output is not None and not known:
        save_profiles(output, [one.profile for one in measured])
    best = [
        one.model(one.profile).best_batch(
            context,
            kv_capacity_tokens=one.spec.kv_capacity_tokens,
            max_sequences=one.spec.max_sequences,
            block_size=one.spec.block_size,
        )
        for one in measured
    ]
    console.print(profiles_table(measured, best))
    if plot is not None:
        draw(measured, best, context, plot)
    if check:
        checks = []
        for one in measured:
            with console.status(f"checking {one.name}"):
                checks.append(checked(one, measured_on(one.spec, held_out_trials(one.spec, HELD_OUT_STEPS))))
            console.print(check_table(checks[-1]))
        console.print(errors_table(checks))


def _profile(spec: EngineSpec, known: list[Profile]) -> Profile:
    from cluster.errors import UserError
    from cluster.profile import newest_of
    from engine.profiling import measured_anew

    if not known:
        return measured_anew(spec)
    assert spec.accelerator is not None, "specs_of names it"
    found = newest_of(known, spec.variant.name, spec.accelerator.name)
    if found is None:
        raise UserError(f"--output: has no profile of {spec.variant.name} on {spec.accelerator.name}; add --force")
    return found
