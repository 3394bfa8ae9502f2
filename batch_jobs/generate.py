"""A generation job from files to files: what it needs is worked out here, run as a Ray Data plan, and committed.

It knows no command line and no HTTP; whoever calls `run_generate` may have a Ray running already.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from batch_jobs.batch_tuner import BatchChoice, LengthSample, choose_batch, sample_head
from batch_jobs.engine_choice import EngineChoice, choose_engine
from batch_jobs.generator import sequence_limit
from batch_jobs.input_files import InputFile, approximate_rows, find_input_files
from batch_jobs.local_ray import job_ray
from batch_jobs.progress import JobBar, Tally, job_bar
from batch_jobs.prompts import PromptEncoder
from batch_jobs.reading import Columns, limited
from batch_jobs.report import GenerateReport
from batch_jobs.writing import RESULT_SCHEMA, FileFormat, OutputFolder, check_output_folder
from cluster.config import FleetConfig
from cluster.cpu_host import usable_cores
from cluster.errors import UserError
from cluster.request import SamplingParams

if TYPE_CHECKING:
    from ray.data import Dataset

COMMIT_INTERVAL_S = 30.0
"""The most work that a kill can cost, beside the rows in flight."""
MIN_NO_PROGRESS_S = 600.0
SLICE_TIMES = 20
"""How many times longer than predicted a slice may take: the rows of a few slices share the engine's places."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerateJob:
    """What a user asks for."""

    inputs: tuple[str, ...]
    """Files, folders, glob patterns."""
    output: Path
    config: FleetConfig
    variant: str | None = None
    """None: the first of the configuration."""
    max_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    columns: Columns = field(default_factory=Columns)
    limit: int | None = None
    raw: bool = False
    system: str | None = None
    format: FileFormat = "jsonl"
    rows_per_file: int = 1000
    num_engines: int = 1

    def __post_init__(self) -> None:
        for name, value, least, most in (
            ("max-tokens", self.max_tokens, 1, 2**31 - 1),
            ("temperature", self.temperature, 0, 2),
            ("top-p", self.top_p, 0, 1),
            ("seed", self.seed, 0, 2**63 - 1),
            ("limit", self.limit, 1, 2**63 - 1),
            ("engines", self.num_engines, 1, 4096),
        ):
            if value is not None and not least <= value <= most:
                raise UserError(f"--{name} {value}: must lie between {least} and {most}")

    @property
    def sampling(self) -> SamplingParams:
        return SamplingParams(
            max_tokens=self.max_tokens, temperature=self.temperature, top_p=self.top_p, seed=self.seed, stop=self.stop
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedJob:
    """The job with all that could be found out before anything runs."""

    job: GenerateJob
    files: list[InputFile]
    num_rows: int
    engine: EngineChoice
    encoder: PromptEncoder
    sample: LengthSample
    batch: BatchChoice


def run_generate(job: GenerateJob, console: Console | None = None) -> GenerateReport:
    """Runs the job to its end. UserError before anything is written where the job cannot run as asked.

    A bad row is an error in its row. On an interrupt, or if an engine dies, what has come back so far is committed
    before the exception goes on.
    """
    started_s = time.monotonic()
    console = console or Console(quiet=True)
    prepared = prepare(job)
    folder = OutputFolder.create(job.output, job.format, job.rows_per_file)
    console.print(f"batch size {prepared.batch.batch}: {prepared.batch.arithmetic}", highlight=False)
    tally = Tally()
    with job_bar(console, prepared.num_rows) as bar, job_ray():
        from batch_jobs.pipeline import quiet_ray_data  # Ray: only once its authentication is set

        with quiet_ray_data():
            _write_results(_planned(prepared), folder, tally, bar)
    return _report(prepared, folder, tally, time.monotonic() - started_s)


def prepare(job: GenerateJob) -> PreparedJob:
    check_output_folder(job.output)
    files = find_input_files(job.inputs)
    engine = choose_engine(job.config, job.variant)
    encoder = PromptEncoder(
        checkpoint=engine.spec.checkpoint,
        max_prompt_tokens=sequence_limit(engine.spec) - 1,
        raw=job.raw,
        system=job.system,
    )
    files = limited(files, job.columns, job.limit)
    sample = sample_head(files, job.columns, encoder)
    num_rows = sample.num_rows if sample.is_whole_input else sum(approximate_rows(file) for file in files)
    if num_rows == 0:
        raise UserError(f"{', '.join(job.inputs)}: no rows to read")
    batch = choose_batch(engine, sample, job.max_tokens, num_rows)
    return PreparedJob(
        job=job, files=files, num_rows=num_rows, engine=engine, encoder=encoder, sample=sample, batch=batch
    )


def _planned(prepared: PreparedJob) -> Dataset:
    from batch_jobs.pipeline import PipelineSizes, plan

    batch = prepared.batch
    sizes = PipelineSizes(
        slice_rows=batch.slice_rows,
        slice_bytes=round(batch.slice_rows * prepared.sample.mean_row_bytes),
        num_engines=prepared.job.num_engines,
        num_readers=min(len(prepared.files), max(1, usable_cores() // 2)),
        no_progress_s=max(MIN_NO_PROGRESS_S, SLICE_TIMES * prepared.job.max_tokens * batch.step_s),
    )
    longest_tokens = prepared.sample.max_prompt_tokens + prepared.job.max_tokens
    spec = prepared.engine.spec_for_batch(batch.batch, longest_tokens)
    return plan(prepared.files, prepared.job.columns, prepared.encoder, spec, prepared.job.sampling, sizes)


def _write_results(results: Dataset, folder: OutputFolder, tally: Tally, bar: JobBar) -> None:
    committed_s: float | None = None
    try:
        for block in results.iter_batches(batch_size=None, batch_format="pyarrow"):
            committed_s = committed_s or time.monotonic()
            tally.add(block)
            folder.add(block.select(RESULT_SCHEMA.names))
            bar.show(tally)
            if time.monotonic() - committed_s > COMMIT_INTERVAL_S:
                folder.commit()
                committed_s = time.monotonic()
        bar.finish(tally)
    finally:
        folder.commit()


def _report(prepared: PreparedJob, folder: OutputFolder, tally: Tally, wall_s: float) -> GenerateReport:
    return GenerateReport(
        variant=prepared.engine.spec.variant.name,
        output=folder.path,
        files=tuple(folder.files),
        rows=tally.rows,
        errors=tally.errors,
        prompt_tokens=tally.prompt_tokens,
        completion_tokens=tally.completion_tokens,
        generating_s=tally.generating_s,
        wall_s=wall_s,
        tokens_per_s=tally.tokens_per_s,
        batch_size=prepared.batch.batch,
        batch_size_reason=prepared.batch.arithmetic,
    )
