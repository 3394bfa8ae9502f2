"""What the jobs show on the console: a bar while they run, a table at the end; it runs nothing itself."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import inf

import pyarrow as pa
import pyarrow.compute as pc
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from batch_jobs.generator import FINISHED, STARTED
from batch_jobs.job_list import JobStatus
from batch_jobs.job_manifest import Counts
from batch_jobs.report import GenerateReport


@dataclass(slots=True, kw_only=True)
class Tally:
    """Sums over the result rows seen so far."""

    rows: int = 0
    errors: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    first_start_s: float = inf
    last_finish_s: float = -inf

    def add(self, results: pa.Table) -> None:
        if not len(results):
            return
        self.rows += len(results)
        self.errors += len(results) - results["error"].null_count
        self.prompt_tokens += pc.sum(results["prompt_tokens"]).as_py()
        self.completion_tokens += pc.sum(results["completion_tokens"]).as_py()
        self.first_start_s = min(self.first_start_s, pc.min(results[STARTED]).as_py())
        self.last_finish_s = max(self.last_finish_s, pc.max(results[FINISHED]).as_py())

    @property
    def generating_s(self) -> float:
        """From the first slice that came to an engine to the last that left one: the start of Ray does not count."""
        return max(0.0, self.last_finish_s - self.first_start_s)

    @property
    def rows_per_s(self) -> float:
        return self.rows / self.generating_s if self.generating_s > 0 else 0.0

    @property
    def tokens_per_s(self) -> float:
        return self.completion_tokens / self.generating_s if self.generating_s > 0 else 0.0


class JobBar:
    """The one progress bar of a job."""

    def __init__(self, progress: Progress, num_rows: int, before: Counts, price_per_s: float) -> None:
        self._progress = progress
        self._before = before
        self._price_per_s = price_per_s
        self._task = progress.add_task("starting the engine", total=num_rows, completed=before.rows, note="")

    def show(self, tally: Tally) -> None:
        errors, cost = self._before.errors + tally.errors, self._before.generating_s + tally.generating_s
        note = f"{tally.rows_per_s:.3g} rows/s, {tally.tokens_per_s:.0f} tokens/s"
        note += f", {errors} errors" if errors else ""
        note += f", cost {cost * self._price_per_s:.2f}" if self._price_per_s else ""
        done = self._before.rows + tally.rows
        self._progress.update(self._task, description="generating", completed=done, note=note)

    def finish(self) -> None:
        """The total was an estimate for files of lines."""
        (task,) = self._progress.tasks
        self._progress.update(self._task, total=task.completed)


@contextmanager
def job_bar(console: Console, num_rows: int, before: Counts, price_per_s: float) -> Iterator[JobBar]:
    """`price_per_s`: of all engines together."""
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("rows"))
    times = (TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, TextColumn("{task.fields[note]}"), *times, console=console) as progress:
        yield JobBar(progress, num_rows, before, price_per_s)


def report_table(report: GenerateReport) -> Table:
    table = Table(title="Job", title_justify="left", show_header=False)
    table.add_row("variant", report.variant)
    before = f", {report.rows_before} of them in earlier runs" if report.rows_before else ""
    table.add_row("rows", f"{report.rows}, of which {report.errors} with an error of their own{before}")
    table.add_row("tokens", f"{report.prompt_tokens} in prompts, {report.completion_tokens} generated")
    table.add_row("tokens/s", f"{report.tokens_per_s:.0f} generated over {report.generating_s:.1f} s")
    table.add_row("in all", f"{report.wall_s:.1f} s, with the start of Ray and of the engine")
    if report.cost:
        table.add_row("cost", f"{report.cost:.2f}")
    if report.batch_size is not None:
        table.add_row("batch size", str(report.batch_size))
        table.add_row("why", report.batch_size_reason)
    table.add_row("written", f"{len(report.files)} files in {report.output}")
    return table


def jobs_table(jobs: Iterable[JobStatus]) -> Table:
    table = Table("job", "state", "rows", "errors", "tokens", "model", "variant", "began (UTC)")
    for job in jobs:
        counts, done = job.counts, f"{job.counts.rows} / {max(job.num_rows, job.counts.rows)}"
        began = job.started_at.removesuffix("+00:00").replace("T", " ")
        errors, tokens = str(counts.errors), str(counts.completion_tokens)
        table.add_row(str(job.output), job.state, done, errors, tokens, job.model, job.variant, began)
    return table
