"""The bar over decoder blocks and the table at the end of a quantisation; it runs nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from batch_jobs.quantize.report import QuantizeReport, error_over_rtn


class BlockBar:
    """The one progress bar of a job."""

    def __init__(self, progress: Progress, num_blocks: int) -> None:
        self._progress = progress
        self._task = progress.add_task("starting the workers", total=num_blocks, note="")

    def resumed(self) -> None:
        """One block more that an earlier run had finished."""
        self._progress.update(self._task, description="finished before", advance=1)

    def done(self, errors: Mapping[str, Mapping[str, float]]) -> None:
        """One block more, with the errors of its matrices."""
        self._progress.update(self._task, description="quantising", advance=1, note=_note(errors))


@contextmanager
def block_bar(console: Console, num_blocks: int) -> Iterator[BlockBar]:
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("blocks"),
    )
    with Progress(*columns, TextColumn("{task.fields[note]}"), TimeElapsedColumn(), console=console) as progress:
        yield BlockBar(progress, num_blocks)


def report_table(report: QuantizeReport) -> Table:
    table = Table(title=f"Quantised {report.source}", title_justify="left", show_header=False)
    table.add_row("method", f"{report.settings.method}: {report.settings.summary}")
    share = report.output_bytes / report.source_bytes
    table.add_row("bytes", f"{report.output_bytes:,} from {report.source_bytes:,} ({share:.1%}), head included")
    resumed = f", {report.num_resumed_blocks} blocks from an earlier run" if report.num_resumed_blocks else ""
    table.add_row("time", f"{report.seconds:.1f} s{resumed}")
    table.add_row("peak memory", f"{report.peak_memory_bytes / 1e9:.2f} GB")
    ratio = report.error_over_rtn
    if ratio is None:
        worst = max(report.matrices.items(), key=lambda item: item[1]["weight_error"])
        table.add_row("error of weights", f"at most {worst[1]['weight_error']:.3%} ({worst[0]})")
    else:
        worse = report.num_worse_than_rtn
        table.add_row(
            "error of outputs", f"{ratio:.3f} of rounding to nearest's (geometric mean); worse: {worse} matrices"
        )
    table.add_row("written", str(report.output))
    return table


def _note(errors: Mapping[str, Mapping[str, float]]) -> str:
    ratio = error_over_rtn(errors)
    if ratio is not None:
        return f"{ratio:.2f} of RTN's error"
    return f"error {max(found.get('weight_error', 0.0) for found in errors.values()):.2%} of the weights at most"
