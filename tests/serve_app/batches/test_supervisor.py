"""Batches are worked on by one supervisor at a time, in processes that end with it, and begun again where they died."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from batch_jobs.job_manifest import JOB_FOLDER
from cluster.config import FleetConfig
from serve_app.batches.batch_folder import BatchFolder
from serve_app.batches.shelf import Shelves
from serve_app.batches.supervisor import MAX_FAILURES, Failures, Supervisor
from tests.serve_app.batches.conftest import MODEL, do_rows

ROOT = Path(__file__).parents[3]
NewBatch = Callable[..., BatchFolder]


@pytest.fixture
async def supervise(shelves: Shelves, batch_config: FleetConfig) -> AsyncIterator[Callable[[], Supervisor]]:
    begun: list[Supervisor] = []

    def new() -> Supervisor:
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        begun.append(Supervisor(shelves=shelves, config=batch_config, environment=environment))
        begun[-1].start()
        return begun[-1]

    yield new
    for supervisor in begun:
        await supervisor.close()


async def eventually(condition: Callable[[], Any], timeout_s: float = 30.0) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, f"it did not happen within {timeout_s} s"
        await asyncio.sleep(0.02)


def children() -> list[psutil.Process]:
    return [
        process
        for process in psutil.Process().children()
        if process.status() != psutil.STATUS_ZOMBIE and "serve_app.batches.process" in process.cmdline()
    ]


async def test_a_cancelled_batch_is_checked_and_settled_by_one_of_two(supervise: Any, new_batch: NewBatch) -> None:
    batch = new_batch()
    first, second = supervise(), supervise()
    await eventually(lambda: batch.state.status == "in_progress")
    batch.cancel(time.time())
    await eventually(lambda: batch.state.is_over)
    assert batch.object()["status"] == "cancelled"
    assert sorted(supervisor._lock is not None for supervisor in (first, second)) == [False, True]
    leader, other = (first, second) if first._lock is not None else (second, first)
    await leader.close()
    await eventually(lambda: other._lock is not None, 5)


async def test_a_child_that_was_killed_is_begun_again(supervise: Any, new_batch: NewBatch) -> None:
    batch = new_batch()
    do_rows(batch, 0, 1)
    batch.set_state(batch.state.becoming("finalizing", time.time(), num_requests=6))
    supervisor = supervise()
    await eventually(lambda: children())
    os.kill(children()[0].pid, signal.SIGKILL)
    await eventually(lambda: supervisor._failures[batch.path].count == 1)
    supervisor._failures[batch.path].not_before_s = 0.0
    await eventually(lambda: batch.state.is_over)
    assert batch.object()["request_counts"]["completed"] == 2


async def test_a_batch_that_never_gets_on_fails(supervise: Any, new_batch: NewBatch) -> None:
    batch = new_batch()
    do_rows(batch, 0, 1)
    (batch.jobs[0].output / JOB_FOLDER / "manifest").unlink()
    (batch.jobs[0].output / JOB_FOLDER / "manifest").mkdir()
    batch.set_state(batch.state.becoming("in_progress", time.time(), num_requests=6, model=MODEL))
    supervisor = supervise()
    supervisor._failures[batch.path] = Failures(count=MAX_FAILURES - 1)
    await eventually(lambda: batch.failure is not None)
    (batch.jobs[0].output / JOB_FOLDER / "manifest").rmdir()
    supervisor._failures[batch.path].pause(None, 0, 0)
    await eventually(lambda: batch.state.is_over)
    shown = batch.object()
    assert shown["status"] == "failed"
    assert shown["errors"]["data"][0]["code"] == "server_error"


async def test_what_the_servers_owner_can_mend_is_waited_for(supervise: Any, new_batch: NewBatch) -> None:
    batch = new_batch()
    output = batch.jobs[0].output
    output.mkdir()
    (output / "stray.jsonl").write_text("{}\n")  # the job refuses a folder of somebody else's results
    batch.set_state(batch.state.becoming("in_progress", time.time(), num_requests=6, model=MODEL))
    supervisor = supervise()
    supervisor._failures[batch.path] = Failures(count=MAX_FAILURES)
    await eventually(lambda: supervisor._failures[batch.path].count > MAX_FAILURES)
    assert batch.object()["status"] == "in_progress"
    assert supervisor._failures[batch.path].holds_up("run", time.time() + 60)
    assert not supervisor._failures[batch.path].holds_up("settle", time.time())


async def test_a_batch_that_cannot_be_read_holds_up_no_other(supervise: Any, new_batch: NewBatch) -> None:
    broken, whole = new_batch(), new_batch("\n")
    (broken.path / "state.json").write_text("{")
    supervise()
    await eventually(lambda: whole.state.is_over)
    assert whole.object()["errors"]["data"][0]["code"] == "empty_file"
