"""The command `generate`, and the registers of the other jobs' commands; it imports what it needs when it runs."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

import batch_jobs.evaluate.cli
import batch_jobs.profiling.cli
import batch_jobs.quantize.cli
from batch_jobs.command_line import INTERRUPTED, ConfigOption, interruptible


class Format(StrEnum):
    parquet = "parquet"
    jsonl = "jsonl"
    openai_batch = "openai-batch"


class InputFormatOption(StrEnum):
    auto = "auto"
    openai_batch = "openai-batch"


def register(app: typer.Typer) -> None:
    app.command("generate")(generate)
    app.command("jobs")(jobs)
    batch_jobs.evaluate.cli.register(app)
    batch_jobs.profiling.cli.register(app)
    batch_jobs.quantize.cli.register(app)


def generate(
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="INPUT...",
            help="JSONL, CSV, TSV, Parquet, text (a prompt a line), OpenAI Batch, Hugging Face's save_to_disk:"
            " files, folders, quoted glob patterns, and URIs of them (s3://, gs://, abfs://, hf://, file://).",
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="OUTDIR", help="Folder for the results.")],
    variant: Annotated[
        str | None,
        typer.Option(
            help="A variant of the configuration, its first one if not given; auto: the cheapest for the rows."
        ),
    ] = None,
    min_quality: Annotated[
        float, typer.Option(help="Of the variant: bf16's perplexity / its own; what auto may go down to.")
    ] = 0.0,
    share_fleet: Annotated[
        bool,
        typer.Option(
            "--share-fleet",
            help="Start no engine: run the rows on what a serving fleet leaves idle, after all its other requests."
            " With the key in QUANTFLEET_API_KEY, where it wants one.",
        ),
    ] = False,
    fleet: Annotated[
        str | None, typer.Option(metavar="URL", help="With --share-fleet: its address, if not the configuration's.")
    ] = None,
    config: ConfigOption = None,
    max_tokens: Annotated[int, typer.Option(help="Tokens to generate for a row, at most.")] = 256,
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token each time.")] = 0.0,
    top_p: Annotated[float, typer.Option(help="Draw from the likeliest tokens that have this much together.")] = 1.0,
    seed: Annotated[int | None, typer.Option(help="With a temperature: the same seed, the same texts.")] = None,
    stop: Annotated[list[str] | None, typer.Option(help="End a text before this; may be given several times.")] = None,
    file_format: Annotated[Format, typer.Option("--output-format", "--format", help="Of the results.")] = Format.jsonl,
    input_format: Annotated[
        InputFormatOption, typer.Option(help="`auto` goes by a file's name and by its first line.")
    ] = InputFormatOption.auto,
    split: Annotated[str | None, typer.Option(help="Of a Hugging Face DatasetDict.")] = None,
    template: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT|@FILE",
            help="The prompt made of columns: 'Question: {question}\\nAnswer:'; a brace is written twice.",
        ),
    ] = None,
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
    batch_size: Annotated[
        int | None,
        typer.Option(
            help="Rows that an engine runs at once; else the cost model's best, probed where the job is long."
        ),
    ] = None,
    rows_per_file: Annotated[int, typer.Option(help="Of the results.")] = 1000,
    new_run: Annotated[
        bool,
        typer.Option("--new-run", help="Begin anew: what OUTDIR holds of a former run is moved to OUTDIR.run1, ..."),
    ] = False,
) -> None:
    """Generate a text for every row of a dataset; a bad row gets an error instead of a text.

    Ended or killed at any moment, the same command goes on where it was: every row comes out once.
    """
    from rich.console import Console

    from batch_jobs.generate import GenerateJob, run_generate
    from batch_jobs.niceness import give_way
    from batch_jobs.progress import report_table
    from batch_jobs.prompt_template import PromptTemplate
    from batch_jobs.reading import Columns
    from cluster.config import FleetConfig
    from cluster.errors import UserError

    if fleet is not None and not share_fleet:
        raise UserError(f"--fleet {fleet}: is for --share-fleet, which is not given")
    if share_fleet:
        give_way()
    settings = FleetConfig.load(config)
    job = GenerateJob(
        inputs=tuple(inputs),
        output=output,
        config=settings,
        variant=variant,
        min_quality=min_quality,
        share_fleet=(fleet or settings.http.url) if share_fleet else None,
        max_tokens=max_tokens,
        temperature=temperature,
        top_p=top_p,
        seed=seed,
        stop=tuple(stop or ()),
        columns=Columns(
            prompt=prompt_column,
            id=id_column,
            template=None if template is None else PromptTemplate.of_option(template),
        ),
        split=split,
        input_format=input_format.value,
        limit=limit,
        raw=raw,
        system=system,
        format=file_format.value,
        num_engines=engines,
        batch_size=batch_size,
        rows_per_file=rows_per_file,
        new_run=new_run,
    )
    console = Console()
    with interruptible():
        try:
            report = run_generate(job, console)
        except KeyboardInterrupt:
            console.print(f"interrupted; the same command goes on with {output}")
            raise typer.Exit(INTERRUPTED) from None
    console.print(report_table(report))
    if not report.is_finished:
        console.print(f"not finished: the same command goes on with {output}")
        raise typer.Exit(INTERRUPTED)


def jobs(
    folders: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[OUTDIR]...", help="Output folders; all that began here, if not given."),
    ] = None,
) -> None:
    """How far the jobs of `generate` are, from their manifests."""
    from rich.console import Console

    from batch_jobs.job_list import jobs_in, known_jobs
    from batch_jobs.progress import jobs_table

    Console().print(jobs_table(jobs_in(folders) if folders else known_jobs()))
