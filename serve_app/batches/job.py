"""The rows of a batch, run by the job code of `quantfleet generate`; it checks no file and keeps no result."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from batch_jobs.generate import run_generate
from batch_jobs.generate_job import GenerateJob, prepare
from batch_jobs.job_manifest import Manifest
from cluster.config import FleetConfig
from serve_app.batches.batch_folder import BatchFolder, BatchJob
from serve_app.batches.results import FORMAT, ROWS_PER_FILE, JobResults, input_of, progress_in, write_rest

PROGRESS_PERIOD_S = 2.0


def run_batch(batch: BatchFolder, config: FleetConfig) -> bool:
    """From where it ended before; False where it was asked to end before all rows were done. Errors are generate's.

    A job's folder is refused to another model or other code. A batch's rows are requests of their own, so the batch
    then goes on with those that are left, as a new job.
    """
    job = job_of(batch, batch.jobs[-1], config)
    before = Manifest.read(job.output)
    if before is not None and before.is_finished:
        return True
    if before is not None and before.settings.digest != prepare(job).fingerprint.digest:
        rest = batch.next_job()
        if not write_rest(input_of(batch.input), JobResults.of(batch.jobs).done_ids(), rest.input):
            return True
        job = job_of(batch, rest, config)
    with _progress_told(batch):
        return run_generate(job).is_finished


def job_of(batch: BatchFolder, job: BatchJob, config: FleetConfig) -> GenerateJob:
    _, _, variant = (batch.state.model or "").partition(":")
    return GenerateJob(
        inputs=(str(job.input),),
        output=job.output,
        config=config,
        variant=variant or config.batches.variant,
        # Of a line that names no bound: OpenAI's default is none, so the context is it.
        max_tokens=config.engine.max_context,
        input_format=FORMAT,
        format=FORMAT,
        rows_per_file=ROWS_PER_FILE,
    )


@contextmanager
def _progress_told(batch: BatchFolder) -> Iterator[None]:
    over = threading.Event()

    def tell() -> None:
        while not over.wait(PROGRESS_PERIOD_S):
            batch.set_progress(progress_in(batch.jobs))

    teller = threading.Thread(target=tell, name="batch-progress", daemon=True)
    teller.start()
    try:
        yield
    finally:
        over.set()
        teller.join()
