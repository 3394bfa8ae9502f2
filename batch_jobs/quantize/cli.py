"""The command `quantize`: options in, a bar and a table out; it imports what it needs when it runs."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from batch_jobs.command_line import INTERRUPTED, interruptible

if TYPE_CHECKING:
    from batch_jobs.quantize.settings import GroupSize


class MethodName(StrEnum):
    gptq = "gptq"
    awq = "awq"
    rtn = "rtn"
    int8 = "int8"
    nf4 = "nf4"
    fp8 = "fp8"


class TokenWeighting(StrEnum):
    residual = "residual"
    equal = "equal"


def register(app: typer.Typer) -> None:
    app.command("quantize")(quantize)


def quantize(
    source: Annotated[
        str, typer.Argument(help="A model's name (embedded:smollm2-135m), a Hugging Face id, or a folder.")
    ],
    method: Annotated[
        MethodName, typer.Option(help="gptq and awq look at calibration text; rtn, int8, nf4, fp8 at weights only.")
    ],
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", metavar="DIR", help="The checkpoint; DIR.partial holds finished blocks meanwhile."
        ),
    ],
    bits: Annotated[int, typer.Option(help="gptq, awq, rtn: 2, 3, 4 or 8.")] = 4,
    group_size: Annotated[
        int | None,
        typer.Option(help="Columns that share a scale: 32, 64, 128, -1 a row; else the largest that divides."),
    ] = None,
    symmetric: Annotated[
        bool | None, typer.Option("--sym/--asym", help="Without or with zero points; awq has them, if not given.")
    ] = None,
    act_order: Annotated[
        bool, typer.Option("--act-order", help="gptq: columns with the largest inputs first (desc_act).")
    ] = False,
    static_groups: Annotated[
        bool, typer.Option("--static-groups", help="With --act-order: groups of neighbouring columns all the same.")
    ] = False,
    damping: Annotated[float, typer.Option(help="gptq: added to the Hessian's diagonal, as a share of its mean.")] = (
        0.01
    ),
    token_weights: Annotated[
        TokenWeighting,
        typer.Option(help="What a token's error counts: by its share of the residual stream, or equal as in papers."),
    ] = TokenWeighting.residual,
    keep_salient: Annotated[
        float,
        typer.Option(
            metavar="SHARE",
            help="awq's motivation instead of awq: this share of input channels stays 16 bit (a dense checkpoint).",
        ),
    ] = 0.0,
    double_quant: Annotated[bool, typer.Option(help="nf4: the scales are quantised too.")] = True,
    calibration: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Text like what the model will see, UTF-8; else prose of this Python."),
    ] = None,
    num_samples: Annotated[
        int, typer.Option(help="Windows of the calibration text; 20 tokens a column of the widest matrix are plenty.")
    ] = 256,
    seq_len: Annotated[int, typer.Option(help="Tokens of a window.")] = 128,
    seed: Annotated[int, typer.Option(help="Of where the windows begin.")] = 0,
    workers: Annotated[int | None, typer.Option(help="Processes that share the samples; one a GPU, or a core.")] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace DIR where it is a former result; anything else stays.")
    ] = False,
) -> None:
    """Quantise a model into a checkpoint that others load too; after a kill the same command goes on."""
    from rich.console import Console

    from batch_jobs.quantize.calibration import CalibrationSettings
    from batch_jobs.quantize.job import QuantizeJob, run_quantize
    from batch_jobs.quantize.progress import report_table
    from batch_jobs.quantize.settings import QuantizeSettings

    job = QuantizeJob(
        source=source,
        output=output,
        settings=QuantizeSettings(
            method=method.value,
            bits=bits,
            group_size=_group_size(group_size),
            symmetric=method is not MethodName.awq if symmetric is None else symmetric,
            act_order=act_order,
            static_groups=static_groups,
            damping=damping,
            token_weights=token_weights.value,
            keep_salient=keep_salient,
            double_quant=double_quant,
        ),
        calibration=CalibrationSettings(file=calibration, num_samples=num_samples, seq_len=seq_len, seed=seed),
        num_workers=workers,
        overwrite=overwrite,
    )
    console = Console()
    with interruptible():
        try:
            report = run_quantize(job, console)
        except KeyboardInterrupt:
            console.print(f"interrupted; the finished blocks stay in {output}.partial, the same command goes on")
            raise typer.Exit(INTERRUPTED) from None
    console.print(report_table(report))


def _group_size(typed: int | None) -> GroupSize:
    if typed is None:
        return "largest"
    return "row" if typed == -1 else typed
