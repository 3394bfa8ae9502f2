"""A generation job from files to files: what it needs is worked out here, run as a Ray Data plan, and committed.

It knows no command line and no HTTP; whoever calls `run_generate` may have a Ray running already.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from rich.console import Console

from batch_jobs.batch_probe import Work, best_of, candidates, pays, probe
from batch_jobs.batch_tuner import BatchChoice, LengthSample, choose_batch, sample_head, slice_rows, worthwhile_slice
from batch_jobs.disk import full_disk_told
from batch_jobs.generate_job import GenerateJob, PreparedJob, prepare
from batch_jobs.input_files import InputFile, approximate_rows, file_end
from batch_jobs.job_folder import PLACED_SCHEMA, JobFolder, refuse_foreign, set_aside
from batch_jobs.job_list import note_job
from batch_jobs.job_manifest import JOB_FOLDER, Counts
from batch_jobs.local_ray import job_ray
from batch_jobs.progress import JobBar, Tally, job_bar
from batch_jobs.repeated_ids import marked_files
from batch_jobs.report import GenerateReport
from batch_jobs.stop_sign import StopSign, put_up_by_signals
from cluster.cpu_host import usable_cores
from cluster.errors import UserError

if TYPE_CHECKING:
    from ray.data import Dataset

    from batch_jobs.pipeline import PipelineSizes

COMMIT_INTERVAL_S = 300.0
"""The longest that finished rows wait for a file; until then they lie in the journal."""
MIN_NO_PROGRESS_S = 600.0
SHARED_NO_PROGRESS_S = 7 * 86_400.0
"""Of a fleet that has nothing idle: it is asked, and answers, all the while."""
SLICE_TIMES = 20
"""How many times longer than predicted a slice may take: the rows of a few slices share the engine's places."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """How the job's rows run together, and the sample of them that says so."""

    choice: BatchChoice
    sample: LengthSample


def run_generate(job: GenerateJob, console: Console | None = None) -> GenerateReport:
    """Runs the job to its end, or from where it ended before. UserError where it cannot run as asked.

    A bad row is an error in its row. Once begun, whatever ends the job leaves a folder that the same job goes on with:
    at a first SIGINT or SIGTERM the rows in flight are finished, and the report says that the job is not.
    """
    started_s = time.monotonic()
    console = console or Console(quiet=True)
    if job.new_run and (former := set_aside(job.output)):
        console.print(f"the former run is in {former}", highlight=False)
    refuse_foreign(job.output)
    prepared = prepare(job)
    if prepared.variant_choice is not None:
        console.print(f"variant {prepared.engine.spec.variant.name}: {prepared.variant_choice}", highlight=False)
    with full_disk_told(job.output):
        folder = JobFolder.open(
            job.output,
            prepared.fingerprint,
            job.format,
            job.rows_per_file,
            lambda: _rows_of(prepared),
            prepared.variant_choice,
        )
        try:
            note_job(job.output)
            before = folder.counts
            batch = None if folder.manifest.is_finished else _run(prepared, folder, console)
            return _report(prepared, folder, before, batch, time.monotonic() - started_s)
        finally:
            folder.close()


def _rows_of(prepared: PreparedJob) -> int:
    num_rows = sum(approximate_rows(file) for file in prepared.files)
    if num_rows == 0:
        raise UserError(f"{', '.join(prepared.job.inputs)}: no rows to read")
    return num_rows


def _run(prepared: PreparedJob, folder: JobFolder, console: Console) -> Batch | None:
    """None where nothing was left to do but to say so."""
    num_rows = folder.manifest.settings.num_rows
    if folder.counts.rows:
        console.print(f"{folder.path}: {folder.counts.rows} rows are done; going on", highlight=False)
    files = marked_files(prepared.files, folder.path / JOB_FOLDER)
    left = [piece for file in files for piece in _left_of(file, folder)]
    batch = None
    if left:
        sample = sample_head(prepared.files, prepared.job.columns, prepared.encoder)
        batch = Batch(choice=_batch(prepared, sample, num_rows), sample=sample)
        with job_ray():
            batch = _tuned(prepared, batch, num_rows - folder.counts.rows, console)
            console.print(f"batch size {batch.choice.batch}: {batch.choice.arithmetic}", highlight=False)
            if not _generate(prepared, folder, left, batch, console):
                return batch
    folder.finish()
    return batch


def _batch(prepared: PreparedJob, sample: LengthSample, num_rows: int) -> BatchChoice:
    choice = choose_batch(prepared.engine, sample, sample.output_tokens(prepared.job.max_tokens), num_rows)
    asked = prepared.job.batch_size
    if asked is None:
        return choice
    return replace(choice, batch=asked, slice_rows=slice_rows(asked), arithmetic="asked for by --batch-size")


def _tuned(prepared: PreparedJob, batch: Batch, rows_left: int, console: Console) -> Batch:
    """By a probe, where the job is long enough for that; on one of the hosts or GPUs that will run the rows."""
    engine, choice = prepared.engine, batch.choice
    work = Work.of(batch.sample, batch.sample.output_tokens(prepared.job.max_tokens))
    tried = candidates(choice, engine, work, rows_left)
    is_given = prepared.job.batch_size is not None or engine.share is not None
    if is_given or len(tried) < 2 or not pays(engine, work, choice, rows_left):
        return batch
    import ray

    with console.status("probing batch sizes"):
        remote = ray.remote(num_cpus=0, num_gpus=engine.spec.num_gpus, max_calls=1)(probe)
        found = ray.get(remote.remote(engine, work, tried, _longest_tokens(prepared, batch)))
    return replace(batch, choice=best_of(found, choice))


def _left_of(file: InputFile, folder: JobFolder) -> list[InputFile]:
    end = file_end(file) if file.end is None else file.end
    return [replace(file, begin=gap.begin, first=gap.first, end=gap.end) for gap in folder.done.gaps(file.index, end)]


def _generate(prepared: PreparedJob, folder: JobFolder, left: list[InputFile], batch: Batch, console: Console) -> bool:
    """False where a signal ended it before all rows were done."""
    spec, job = prepared.engine.spec_for_batch(batch.choice.batch, _longest_tokens(prepared, batch)), prepared.job
    with job_bar(console, folder.manifest.settings.num_rows, folder.counts, prepared.price_per_s) as bar:
        from batch_jobs.pipeline import plan, quiet_ray_data  # Ray: only once its authentication is set

        sign = StopSign()
        with quiet_ray_data(), put_up_by_signals(sign) as asked:
            sizes = _sizes(prepared, left, batch)
            results = plan(
                left,
                job.columns,
                prepared.encoder,
                spec,
                job.sampling,
                sizes,
                folder.manifest.settings.digest,
                sign,
                prepared.engine.share,
            )
            _write_results(results, folder, bar)
            return not asked.is_set()


def _longest_tokens(prepared: PreparedJob, batch: Batch) -> int:
    return batch.sample.max_prompt_tokens + (batch.sample.max_output_bound or prepared.job.max_tokens)


def _sizes(prepared: PreparedJob, left: list[InputFile], batch: Batch) -> PipelineSizes:
    from batch_jobs.pipeline import PipelineSizes

    choice, no_progress_s = batch.choice, SHARED_NO_PROGRESS_S
    if prepared.engine.share is None:
        no_progress_s = max(MIN_NO_PROGRESS_S, SLICE_TIMES * _longest_tokens(prepared, batch) * choice.step_s)
    rows = worthwhile_slice(prepared.engine, choice, batch.sample, prepared.job.max_tokens)
    return PipelineSizes(
        slice_rows=rows,
        slice_bytes=round(rows * batch.sample.mean_row_bytes),
        num_engines=prepared.job.num_engines,
        num_readers=min(len(left), max(1, usable_cores() // 2)),
        no_progress_s=no_progress_s,
    )


def _write_results(results: Dataset, folder: JobFolder, bar: JobBar) -> None:
    tally = Tally()
    committed_s = time.monotonic()
    try:
        for block in results.iter_batches(batch_size=None, batch_format="pyarrow"):
            before_s = tally.generating_s
            tally.add(block)
            folder.add(block.select(PLACED_SCHEMA.names), tally.generating_s - before_s)
            bar.show(tally)
            if time.monotonic() - committed_s > COMMIT_INTERVAL_S:
                folder.commit()
                committed_s = time.monotonic()
    finally:
        folder.commit()
    bar.finish()


def _report(
    prepared: PreparedJob, folder: JobFolder, before: Counts, batch: Batch | None, wall_s: float
) -> GenerateReport:
    counts = folder.counts
    generating_s, tokens = (
        counts.generating_s - before.generating_s,
        counts.completion_tokens - before.completion_tokens,
    )
    return GenerateReport(
        variant=prepared.engine.spec.variant.name,
        output=folder.path,
        fingerprint=folder.manifest.settings.digest,
        files=tuple(folder.files),
        is_finished=folder.manifest.is_finished,
        rows=counts.rows,
        rows_before=before.rows,
        errors=counts.errors,
        prompt_tokens=counts.prompt_tokens,
        completion_tokens=counts.completion_tokens,
        generating_s=generating_s,
        wall_s=wall_s,
        tokens_per_s=tokens / generating_s if generating_s > 0 else 0.0,
        cost=counts.generating_s * prepared.price_per_s,
        batch_size=batch.choice.batch if batch else None,
        batch_size_reason=batch.choice.arithmetic if batch else "nothing was left to do",
    )
