"""The commands `generate` and `evaluate`: options in, tables out; each imports what it needs when it runs."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

INTERRUPTED = 130
"""What a shell reports for a command ended by SIGINT."""

ConfigOption = Annotated[
    Path | None, typer.Option("--config", "-c", help="fleet.yaml; else ./fleet.yaml, else the built-in default.")
]


class Format(StrEnum):
    parquet = "parquet"
    jsonl = "jsonl"


def register(app: typer.Typer) -> None:
    app.command("generate")(generate)
    app.command("evaluate")(evaluate)


def generate(
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="INPUT...",
            help="JSONL, CSV, TSV, Parquet or text (a prompt a line): files, folders, or quoted glob patterns.",
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="OUTDIR", help="Folder for the results.")],
    variant: Annotated[
        str | None, typer.Option(help="A variant of the configuration; its first one, if not given.")
    ] = None,
    config: ConfigOption = None,
    max_tokens: Annotated[int, typer.Option(help="Tokens to generate for a row, at most.")] = 256,
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token each time.")] = 0.0,
    top_p: Annotated[float, typer.Option(help="Draw from the likeliest tokens that have this much together.")] = 1.0,
    seed: Annotated[int | None, typer.Option(help="With a temperature: the same seed, the same texts.")] = None,
    stop: Annotated[list[str] | None, typer.Option(help="End a text before this; may be given several times.")] = None,
    file_format: Annotated[Format, typer.Option("--format", help="Of the results.")] = Format.jsonl,
    prompt_column: Annotated[
        str, typer.Option(help="Column of the prompt: text, or a list of chat messages. Without it: `messages`.")
    ] = "prompt",
    id_column: Annotated[
        str | None,
        typer.Option(help="Column of the id; else `id` where a row has one, else made: file name and row number."),
    ] = None,
    raw: Annotated[
        bool,
        typer.Option("--raw", help="Send prompts as they are. Else a prompt is one user message in the model's chat."),
    ] = False,
    system: Annotated[str | None, typer.Option(help="System message for chats that bring none.")] = None,
    limit: Annotated[int | None, typer.Option(help="Only the first so many rows.")] = None,
    engines: Annotated[int, typer.Option(help="Engines side by side, each with a GPU or this host's CPU.")] = 1,
) -> None:
    """Generate a text for every row of a dataset; a bad row gets an error instead of a text."""
    from rich.console import Console

    from batch_jobs.generate import GenerateJob, run_generate
    from batch_jobs.progress import report_table
    from batch_jobs.reading import Columns
    from cluster.config import FleetConfig

    job = GenerateJob(
        inputs=tuple(inputs),
        output=output,
        config=FleetConfig.load(config),
        variant=variant,
        max_tokens=max_tokens,
        temperature=temperature,
        top_p=top_p,
        seed=seed,
        stop=tuple(stop or ()),
        columns=Columns(prompt=prompt_column, id=id_column),
        limit=limit,
        raw=raw,
        system=system,
        format=file_format.value,
        num_engines=engines,
    )
    console = Console()
    with interruptible():
        try:
            report = run_generate(job, console)
        except KeyboardInterrupt:
            console.print(f"interrupted; the finished files in {output} are whole and stay")
            raise typer.Exit(INTERRUPTED) from None
    console.print(report_table(report))


@contextmanager
def interruptible() -> Iterator[None]:
    """SIGTERM ends a job as SIGINT does, also where SIGINT was inherited as ignored (a shell's background job)."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in before:
        signal.signal(number, signal.default_int_handler)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def evaluate(
    variants: Annotated[list[str], typer.Argument(metavar="VARIANT...", help="Variants of the configuration.")],
    text: Annotated[Path, typer.Option("--text", help="A text file, UTF-8.")],
    config: ConfigOption = None,
    register_: Annotated[
        bool, typer.Option("--register", help="Write each quality into fleet.yaml, which the router reads.")
    ] = False,
    context: Annotated[int, typer.Option(help="Tokens of a window.")] = 512,
    stride: Annotated[
        int | None, typer.Option(help="Tokens from one window's begin to the next; disjoint windows, if not given.")
    ] = None,
    max_tokens: Annotated[int, typer.Option(help="Of the text, from its start; 0 takes all of it.")] = 20480,
) -> None:
    """Perplexity of variants on a text, and their quality: the bf16 perplexity divided by theirs."""
    from rich.console import Console

    from batch_jobs.evaluate import EvaluateJob, run_evaluate
    from batch_jobs.progress import scores_table
    from cluster.config import FleetConfig, register_quality

    job = EvaluateJob(
        config=FleetConfig.load(config),
        variants=tuple(variants),
        text=text,
        context=context,
        stride=stride,
        max_tokens=max_tokens or None,
    )
    console = Console()
    scores = run_evaluate(job, console)
    console.print(scores_table(scores, context, job.step))
    if register_:
        for score in scores[1:]:
            file = register_quality(config, score.variant, round(score.quality, 4))
            console.print(f"{file}: variants.{score.variant}.quality: {score.quality:.4f}")
