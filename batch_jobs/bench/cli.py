"""`bench quantization`: the papers' experiments on a model of one's own; it imports what it needs when it runs."""

from __future__ import annotations

from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated

import typer


class Part(StrEnum):
    types = "types"
    int8 = "int8"
    salient = "salient"


def register_bench(bench: typer.Typer) -> None:
    bench.command("quantization")(bench_quantization)


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
