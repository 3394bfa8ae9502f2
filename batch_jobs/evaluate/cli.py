"""The command `evaluate`: options in, a table, a report and pictures out; it imports what it needs when it runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from batch_jobs.command_line import INTERRUPTED, ConfigOption, interruptible

if TYPE_CHECKING:
    from rich.console import Console

    from batch_jobs.evaluate.report import EvaluateReport


def register(app: typer.Typer) -> None:
    app.command("evaluate")(evaluate)


def evaluate(
    variants: Annotated[
        list[str],
        typer.Argument(metavar="VARIANT_OR_DIR...", help="Variants of the configuration, checkpoint folders."),
    ],
    text: Annotated[Path, typer.Option("--text", metavar="FILE", help="A text file, UTF-8.")],
    prompts: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Prompts whose greedy answers are compared; 16 that ship, if not given."),
    ] = None,
    config: ConfigOption = None,
    context: Annotated[int, typer.Option(help="Tokens of a window.")] = 512,
    stride: Annotated[
        int | None, typer.Option(help="Tokens from one window's begin to the next; disjoint windows, if not given.")
    ] = None,
    max_tokens: Annotated[int, typer.Option(help="Of the text, from its start; 0 takes all of it.")] = 20480,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="REPORT", help="X.json, pictures beside it; or a folder for report.json and them."
        ),
    ] = None,
    register_: Annotated[
        bool, typer.Option("--register", help="Write each quality into fleet.yaml, which the router reads.")
    ] = False,
    no_speed: Annotated[bool, typer.Option("--no-speed", help="Measure quality alone.")] = False,
) -> None:
    """What variants cost in quality beside bf16 (perplexity, KL, agreement), and how fast they decode."""
    from rich.console import Console

    from batch_jobs.evaluate.candidates import find_candidates
    from batch_jobs.evaluate.job import run_evaluate, run_quality
    from batch_jobs.evaluate.plan import EvaluateJob
    from batch_jobs.evaluate.registration import register as register_qualities
    from batch_jobs.evaluate.report import check_output
    from batch_jobs.evaluate.table import provenance, scores_table
    from cluster.config import FleetConfig

    job = EvaluateJob(
        config=FleetConfig.load(config),
        variants=tuple(variants),
        text=text,
        prompts=prompts,
        context=context,
        stride=stride,
        max_tokens=max_tokens or None,
    )
    if output is not None:
        check_output(output)
    console = Console()
    with interruptible():
        try:
            report = (run_quality if no_speed else run_evaluate)(job, console)
        except KeyboardInterrupt:
            console.print("interrupted; nothing is written")
            raise typer.Exit(INTERRUPTED) from None
    console.print(scores_table(report))
    console.print(provenance(report), soft_wrap=True, highlight=False, markup=False)
    if output is not None:
        _write(report, output, console)
    if register_:
        folders = find_candidates(job.config, job.variants).folders
        for line in register_qualities(report, config, folders):
            console.print(line, soft_wrap=True, highlight=False, markup=False)


def _write(report: EvaluateReport, output: Path, console: Console) -> None:
    from batch_jobs.disk import write_whole
    from batch_jobs.evaluate.pictures import draw_pictures
    from batch_jobs.evaluate.report import report_path

    path = report_path(output)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, report.to_json().encode())
    for written in (path, *draw_pictures(report, path)):
        console.print(f"written: {written}", soft_wrap=True, highlight=False, markup=False)
