"""`bench generate`: a batch job beside its engine without a job, other batch sizes, and its peers on the same rows.

It knows no command line. The job is the real one, Ray and files included; what it is compared with gets the same
prompts as token ids.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

from rich.console import Console
from rich.table import Table

from batch_jobs.bench.generation_cells import GenerationCell, GenerationRate, Kind, run_cell
from batch_jobs.generate import run_generate
from batch_jobs.generate_job import GenerateJob, PreparedJob, prepare
from batch_jobs.openai_requests import RowRequest
from batch_jobs.prompts import EncodedRow
from batch_jobs.reading import read_rows
from batch_jobs.report import GenerateReport

Row = tuple[list[int], int]
"""Token ids of a prompt, and how many may follow."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    name: str
    batch: int | None
    rate: GenerationRate


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationBench:
    job: GenerateJob
    sweep: tuple[int, ...]
    """Batch sizes of the engine without a job, beside the one that the job took."""
    padded: tuple[int, ...]
    """Batch sizes of transformers' generate."""
    peer_rows: int
    """So many of the rows, evenly from all of them, for one row at a time and for transformers, which are slower; 0
    leaves both out."""

    def run(self, console: Console) -> list[Measured]:
        """The job first."""
        prepared = prepare(self.job)
        rows = _rows(prepared)
        report = run_generate(self.job, console)
        found = [Measured(name="the job", batch=report.batch_size, rate=_rate_of(report))]
        few = rows[:: max(1, len(rows) // max(1, self.peer_rows))][: self.peer_rows]
        for name, kind, batch, some in self._peers(report, rows, few):
            console.print(f"[dim]{name}, {len(some)} rows[/dim]")
            spec = prepared.engine.spec_for_batch(batch, max(len(ids) + max_tokens for ids, max_tokens in some))
            cell = GenerationCell(kind=kind, spec=replace(spec, max_waiting=len(some)), rows=some)
            found.append(Measured(name=name, batch=batch, rate=run_cell(cell)))
        return found

    def _peers(
        self, report: GenerateReport, rows: list[Row], few: list[Row]
    ) -> Iterator[tuple[str, Kind, int, list[Row]]]:
        assert report.batch_size is not None
        for batch in dict.fromkeys((report.batch_size, *self.sweep)):
            yield "the engine alone", "engine", batch, rows
        if not few:
            return
        yield "the engine, one row at a time", "one_row", 1, few
        for batch in self.padded:
            yield "transformers, padded", "transformers", batch, few


def table(measured: list[Measured]) -> Table:
    shown = Table(title="A batch job beside its engine and its peers")
    for heading in ("", "batch", "rows", "output tokens", "seconds", "tokens/s", "the job is"):
        shown.add_column(heading, justify="left" if not heading else "right")
    job = measured[0].rate.tokens_per_s
    for each in measured:
        shown.add_row(
            each.name,
            str(each.batch),
            f"{each.rate.rows:,}",
            f"{each.rate.tokens:,}",
            f"{each.rate.seconds:.1f}",
            f"{each.rate.tokens_per_s:,.0f}",
            f"{job / each.rate.tokens_per_s:.2f}x",
        )
    return shown


def _rows(prepared: PreparedJob) -> list[Row]:
    read = chain.from_iterable(read_rows(file, prepared.job.columns) for file in prepared.files)
    rows = [row for row in prepared.encoder.encode_all(read) if row.error is None]
    return [(list(row.token_ids), _most_tokens(row, prepared.job)) for row in rows]


def _most_tokens(row: EncodedRow, job: GenerateJob) -> int:
    own = RowRequest.decoded(row.request).sampling if row.request is not None else None
    return job.max_tokens if own is None else own.max_tokens


def _rate_of(report: GenerateReport) -> GenerationRate:
    return GenerationRate(rows=report.rows, tokens=report.completion_tokens, seconds=report.generating_s)


def figures(measured: list[Measured], path: Path) -> None:
    """As JSON."""
    import msgspec

    path.write_bytes(msgspec.json.format(msgspec.json.encode(measured)) + b"\n")
