"""Steps of a batch: checked, ended early or in whole with what its job has done, whatever a kill left half done."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest

from cluster.config import FleetConfig
from serve_app.batches.batch_folder import BatchBusyError, BatchFolder
from serve_app.batches.ids import Page
from serve_app.batches.results import JobResults, input_of, progress_in, write_rest
from serve_app.batches.shelf import Shelf
from serve_app.batches.steps import next_step
from serve_app.batches.work import BatchWork
from tests.serve_app.batches.conftest import NUM_LINES, do_rows, input_line

NewBatch = Callable[..., BatchFolder]


@pytest.fixture
def work(batch_config: FleetConfig) -> Callable[[BatchFolder], BatchWork]:
    return lambda batch: BatchWork(batch=batch, config=batch_config)


def lines(batch: BatchFolder, kind: str) -> dict[str, Any]:
    """Of the output or error file, by custom_id."""
    file_id = batch.object()[f"{kind}_file_id"]
    if file_id is None:
        return {}
    files = Shelf.around(batch).files
    record = files.get(file_id)
    assert record is not None
    found = [json.loads(line) for line in files.content(record).read_text().splitlines()]
    assert record.bytes == files.content(record).stat().st_size
    assert len({line["custom_id"] for line in found}) == len(found)
    return {line["custom_id"]: line for line in found}


def test_a_good_file_is_in_progress_then(new_batch: NewBatch, work: Any) -> None:
    batch = new_batch()
    assert next_step(batch, batch.state, time.time()) == "check"
    work(batch).check()
    shown = batch.object()
    assert (shown["status"], shown["model"], shown["request_counts"]["total"]) == ("in_progress", "small", NUM_LINES)
    assert next_step(batch, batch.state, time.time()) == "run"


@pytest.mark.parametrize(
    ("content", "code", "line"),
    [
        (input_line(0) + "{\n", "invalid_json_line", 2),
        ("\ufeff{}".encode("utf-16"), "invalid_file", None),
        ("\n", "empty_file", None),
    ],
)
def test_a_bad_file_fails_and_says_where(
    new_batch: NewBatch, work: Any, content: str | bytes, code: str, line: int | None
) -> None:
    batch = new_batch(content)
    work(batch).check()
    shown = batch.object()
    assert shown["status"] == "failed"
    assert (shown["errors"]["data"][0]["code"], shown["errors"]["data"][0]["line"]) == (code, line)
    assert shown["failed_at"] is not None
    assert str(batch.path) not in json.dumps(shown)
    assert next_step(batch, batch.state, time.time()) is None


def in_progress(new_batch: NewBatch, work: Any, **options: Any) -> BatchFolder:
    batch = new_batch(**options)
    work(batch).check()
    return batch


def test_all_rows_done_is_completed(new_batch: NewBatch, work: Any) -> None:
    batch = in_progress(new_batch, work)
    do_rows(batch, *range(NUM_LINES), bad=4)
    work(batch).settle()
    shown = batch.object()
    assert shown["status"] == "completed"
    assert shown["request_counts"] == {"total": NUM_LINES, "completed": 5, "failed": 1}
    assert (shown["usage"]["input_tokens"], shown["usage"]["output_tokens"]) == (18, 12)
    assert lines(batch, "output").keys() == {"r0", "r1", "r2", "r3", "r5"}
    assert lines(batch, "error")["r4"]["response"]["status_code"] == 400
    assert not list(batch.path.glob("job-*"))
    assert not list(batch.path.glob("*.jsonl"))


def test_a_second_job_has_the_rows_that_are_left(new_batch: NewBatch, work: Any) -> None:
    """As where the server was upgraded meanwhile: the first job's folder takes no rows of other code."""
    batch = in_progress(new_batch, work)
    do_rows(batch, 0, 2, 5, bad=2)
    done = JobResults.of(batch.jobs).done_ids()
    assert write_rest(input_of(batch.input), done, batch.next_job().input)
    first, second = batch.jobs
    assert second.input.read_text() == "".join(map(input_line, (1, 3, 4)))
    assert first.input.read_text() == "".join(map(input_line, range(NUM_LINES)))
    do_rows(batch, 3, 1, 4)
    assert (progress_in(batch.jobs).completed, progress_in(batch.jobs).failed) == (5, 1)
    everything = JobResults.of(batch.jobs).done_ids()
    assert not write_rest(input_of(batch.input), everything, batch.next_job().input)
    work(batch).settle()
    assert lines(batch, "output").keys() == {"r0", "r1", "r3", "r4", "r5"}
    assert lines(batch, "error").keys() == {"r2"}
    assert not list(batch.path.glob("*.jsonl"))


@pytest.mark.parametrize("end", ["cancelled", "expired", "failed"])
def test_a_batch_that_ends_early_keeps_what_is_done(new_batch: NewBatch, work: Any, end: str) -> None:
    batch = in_progress(new_batch, work, age_s=25 * 3600 if end == "expired" else 0)
    do_rows(batch, 0, 3, 1, bad=3)
    if end == "cancelled":
        batch.cancel(time.time())
    elif end == "failed":
        batch.fail("no GPU is free")
    assert next_step(batch, batch.state, time.time()) == "settle"
    work(batch).settle()
    shown = batch.object()
    assert shown["status"] == end
    assert shown[f"{end}_at"] is not None
    assert lines(batch, "output").keys() == {"r0", "r1"}
    errors = lines(batch, "error")
    assert errors.keys() == {"r2", "r3", "r4", "r5"}
    assert errors["r3"]["response"]["status_code"] == 400
    assert errors["r2"]["error"]["code"] == f"batch_{end}"
    assert (shown["errors"] is not None) == (end == "failed")


def test_without_a_line_there_is_no_file(new_batch: NewBatch, work: Any) -> None:
    batch = in_progress(new_batch, work)
    do_rows(batch, *range(NUM_LINES))
    work(batch).settle()
    assert batch.object()["error_file_id"] is None


def test_a_batch_cancelled_before_it_was_checked_has_no_files(new_batch: NewBatch, work: Any) -> None:
    batch = new_batch("no JSON\n")
    batch.cancel(time.time())
    work(batch).settle()
    shown = batch.object()
    assert (shown["status"], shown["output_file_id"], shown["error_file_id"]) == ("cancelled", None, None)


def test_settling_goes_on_where_a_kill_ended_it(
    new_batch: NewBatch, work: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before its first rename, before its second one, ...: between two of them nothing of it can be seen."""
    batch = in_progress(new_batch, work)
    do_rows(batch, *range(NUM_LINES), bad=5)
    real, left, ended = os.replace, 0, 0

    def rename(source: Any, target: Any, **_: Any) -> None:
        nonlocal left
        if left == 0:
            raise KeyboardInterrupt
        left -= 1
        real(source, target)

    while next_step(batch, batch.state, time.time()) is not None:
        left = ended
        with monkeypatch.context() as patch, suppress(KeyboardInterrupt):
            patch.setattr(os, "replace", rename)
            patch.setattr(os, "rename", rename)
            work(batch).settle()
        ended += 1
    assert ended > 5
    assert batch.object()["status"] == "completed"
    assert len(lines(batch, "output")) == NUM_LINES - 1
    assert lines(batch, "error").keys() == {"r5"}
    results, _ = Shelf.around(batch).files.page(Page(limit=9), "batch_output")
    assert len(results) == 2


def test_two_processes_never_hold_one_batch(new_batch: NewBatch) -> None:
    batch = new_batch()
    with batch.held(), pytest.raises(BatchBusyError), batch.held():
        pass
    with batch.held():
        pass
