"""`bench quantization` and `bench generate`: the papers' experiments, and a batch job beside its peers.

It imports what it needs when it runs.
"""

from __future__ import annotations

from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from batch_jobs.command_line import ConfigOption


class Part(StrEnum):
    types = "types"
    int8 = "int8"
    salient = "salient"


def register_bench(bench: typer.Typer) -> None:
    bench.command("quantization")(bench_quantization)
    bench.command("generate")(bench_generate)


def bench_quantization(
    text: Annotated[Path, typer.Option("--text", help="What perplexity is measured on, UTF-8.")],
    model: Annotated[
        str, typer.Option(help="embedded:NAME, a Hugging Face id or a folder: an unquantised model.")
    ] = "embedded:smollm2-135m",
    calibration: Annotated[
        Path | None, typer.Option(help="Text that tells the salient channels; else text of this Python installation.")
    ] = None,
    part: Annotated[
        list[Part] | None,
        typer.Option(
            help="types: int4, FP4, NF4 side by side. int8: LLM.int8()'s threshold swept."
            " salient: AWQ's 1 % of channels. All, if not given."
        ),
    ] = None,
    context: Annotated[int, typer.Option(help="Tokens of a window.")] = 512,
    max_tokens: Annotated[int, typer.Option(help="Of the text, from its start; 0 takes all of it.")] = 20480,
    threads: Annotated[int, typer.Option(help="Of the matrix products.")] = 2,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="DIR", help="The figures as JSON, and as pictures.")
    ] = None,
) -> None:
    """What the papers behind the variants found, looked for in a model of one's own: tables of perplexities."""
    from rich.console import Console
    from rich.progress import Progress

    from batch_jobs.bench.experiments import STEPS, Experiments
    from batch_jobs.bench.results import Results, print_results, write_results

    console = Console()
    experiments = Experiments.open(
        model, text, calibration=calibration, context=context, max_tokens=max_tokens or None, num_threads=threads
    )
    found = {}
    with Progress(console=console, transient=True) as progress:
        for each in dict.fromkeys(part or Part):
            task = progress.add_task(each.value, total=STEPS[each.value])
            found[each.value] = getattr(experiments, each.value)(partial(progress.advance, task))
    results = Results(scale=experiments.scale, **found)
    print_results(results, console)
    if output is not None:
        write_results(results, output)
        console.print(f"{output}: experiments.json and pictures")


def bench_generate(
    inputs: Annotated[list[str], typer.Argument(help="As of `generate`.", metavar="INPUT...")],
    config: ConfigOption = None,
    variant: Annotated[str | None, typer.Option(help="The first of the configuration, if not given.")] = None,
    max_tokens: Annotated[int, typer.Option(help="Of a row.")] = 64,
    prompt_column: Annotated[str, typer.Option(help="The column with the prompt.")] = "prompt",
    sweep: Annotated[str, typer.Option(help="Batch sizes of the engine without a job, such as 8,32,64.")] = "",
    padded: Annotated[str, typer.Option(help="Batch sizes of transformers' generate; empty: none.")] = "8,32,64",
    peer_rows: Annotated[
        int, typer.Option(help="Rows for what is slower, one at a time and transformers; 0: none.")
    ] = 128,
    output: Annotated[Path | None, typer.Option("--output", "-o", metavar="FILE", help="The figures as JSON.")] = None,
) -> None:
    """A batch job's tokens/s beside its engine without a job, other batch sizes, one row at a time, transformers."""
    from tempfile import TemporaryDirectory

    from rich.console import Console

    from batch_jobs.bench.generation import GenerationBench, figures, table
    from batch_jobs.generate_job import GenerateJob
    from batch_jobs.reading import Columns
    from cluster.config import FleetConfig

    console = Console()
    with TemporaryDirectory(prefix="quantfleet-bench-") as folder:
        job = GenerateJob(
            inputs=tuple(inputs),
            output=Path(folder) / "out",
            config=FleetConfig.load(config),
            variant=variant,
            max_tokens=max_tokens,
            columns=Columns(prompt=prompt_column),
        )
        bench = GenerationBench(job=job, sweep=_batches(sweep), padded=_batches(padded), peer_rows=peer_rows)
        measured = bench.run(console)
    console.print(table(measured))
    if output is not None:
        figures(measured, output)


def _batches(text: str) -> tuple[int, ...]:
    from cluster.errors import UserError

    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not all(part.isdigit() and int(part) > 0 for part in parts):
        raise UserError(f"batch sizes {text!r}: numbers above 0, separated by commas, such as 8,32,64")
    return tuple(int(part) for part in parts)
