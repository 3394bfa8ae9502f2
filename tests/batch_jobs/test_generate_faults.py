"""One job on a running Ray that a full disk, kills and signals end again and again: it goes on where it was."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import psutil
import pytest

from batch_jobs.generate import GenerateJob, run_generate
from batch_jobs.local_ray import job_ray
from batch_jobs.stop_sign import StopSign, put_up_by_signals
from cluster.config import FleetConfig
from cluster.errors import UserError
from tests.batch_jobs.job_runs import ENGINE, JobRuns, Process, named, wait_for

pytestmark = pytest.mark.ray

NUM_ROWS = 160
BATCH, MAX_TOKENS = 8, 200
"""A slice of seven rows takes the engine half a second, so that all that happens here falls on its way."""


@pytest.fixture(scope="module")
def cluster() -> Iterator[dict[str, str]]:
    """The environment of drivers in other processes."""
    with job_ray():
        import ray  # only now: imported before, it would not see that it is to stay on loopback

        yield {"RAY_ADDRESS": ray.get_runtime_context().gcs_address, "RAY_AUTH_MODE": "token"}


@pytest.fixture(scope="module")
def config(tiny_checkpoint: Path) -> Path:
    path = tiny_checkpoint.with_name("fleet.yaml")
    path.write_text(f"model: {{source: {tiny_checkpoint}}}\nvariants: {{bf16: {{method: none}}}}\n")
    return path


def test_a_job_goes_on_after_each_of_its_ends(
    cluster: dict[str, str], config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = JobRuns(
        folder=tmp_path,
        num_rows=NUM_ROWS,
        options=("--config", str(config), "--max-tokens", str(MAX_TOKENS), "--batch-size", str(BATCH)),
        rows_per_file=4,
        environment=cluster,
    )
    job = GenerateJob(
        inputs=(str(runs.input),),
        output=runs.out,
        config=FleetConfig.load(config),
        max_tokens=MAX_TOKENS,
        batch_size=BATCH,
        raw=True,
        rows_per_file=4,
    )
    kill_engine_then_interrupt(runs)
    with pytest.raises(UserError, match="No space left on device; free some, or give another -o; the same command"):
        run_on_full_disk(job, monkeypatch)
    kill(runs)
    rows_before = len(list(runs.rows()))
    report = run_generate(job)
    assert report.is_finished
    assert 0 < rows_before <= report.rows_before < NUM_ROWS
    runs.check()


def kill_engine_then_interrupt(runs: JobRuns) -> None:
    """The engine's death is not even noticed."""
    process = runs.start()
    wait_for_files(runs, process, 1)
    running_engine().kill()
    wait_for_files(runs, process, 4)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    assert "not finished: the same command goes on with" in runs.told()


def run_on_full_disk(job: GenerateJob, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where else it may be full: test_job_folder.py."""
    calls = count()

    def fsync(descriptor: int) -> None:
        if next(calls) > 12:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        run_generate(job)


def kill(runs: JobRuns) -> None:
    process = runs.start()
    wait_for_files(runs, process, 1)
    process.kill()
    process.wait(10)
    wait_for(lambda: engine() is None, 60)


def wait_for_files(runs: JobRuns, process: Process, by: int) -> None:
    most = runs.num_files() + by
    wait_for(lambda: process.poll() is not None or runs.num_files() >= most, 120)
    assert process.poll() is None, runs.told()


def engine() -> psutil.Process | None:
    """Ray's workers and what they start are of this process's family: it began Ray."""
    return named(psutil.Process().children(recursive=True), ENGINE)


def running_engine() -> psutil.Process:
    found = engine()
    assert found is not None
    return found


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_puts_the_sign_up_and_a_second_one_interrupts(cluster: dict[str, str], number: signal.Signals) -> None:
    before = signal.getsignal(number)
    sign = StopSign()
    assert not sign.is_up()
    with pytest.raises(KeyboardInterrupt), put_up_by_signals(sign) as asked:  # noqa: PT012
        os.kill(os.getpid(), number)
        assert asked.wait(5)
        wait_for(sign.is_up, 10)
        os.kill(os.getpid(), number)
    assert signal.getsignal(number) is before
