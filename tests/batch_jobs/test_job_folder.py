"""A job's folder: each row once in whole files, wherever a kill or a full disk falls; other jobs' folders refused."""

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batch_jobs.disk import full_disk_told
from batch_jobs.fingerprint import Fingerprint
from batch_jobs.job_folder import PLACED_SCHEMA, JobFolder, is_running, set_aside
from batch_jobs.job_manifest import JOB_FOLDER, Manifest
from batch_jobs.openai_results import RowAnswer
from batch_jobs.row_places import Place
from cluster.errors import UserError

SETTINGS = {"model": "m", "sampling": {"max_tokens": 64, "temperature": 0.0}}
NUM_ROWS = 40


def opened(path: Path, file_format: str = "jsonl", rows_per_file: int = 8, **changes: object) -> JobFolder:
    fingerprint = Fingerprint(settings=SETTINGS | changes)
    return JobFolder.open(path, fingerprint, file_format, rows_per_file, lambda: NUM_ROWS)


def rows(*numbers: int) -> pa.Table:
    places = [Place(file=0, begin=n * 10, end=n * 10 + 10, first=n + 1, number=n + 1) for n in numbers]
    return pa.Table.from_pylist(
        [
            {
                "id": f"r{n}",
                "prompt": "p",
                "text": "täxt\n",
                "prompt_tokens": 1,
                "completion_tokens": 2,
                "finish_reason": "stop",
                "variant": "bf16",
                "fingerprint": "f",
                "error": "bad" if n == 3 else None,
                "answer": RowAnswer(status=400 if n == 3 else 200).encoded(),
                "place": {name: getattr(place, name) for name in ("file", "begin", "end", "first", "number")},
            }
            for n, place in zip(numbers, places, strict=True)
        ],
        schema=PLACED_SCHEMA,
    )


def ids_in(path: Path) -> list[str]:
    lines = [line for file in sorted(path.glob("*.jsonl")) for line in file.read_text().splitlines()]
    return [record.get("custom_id", record["id"]) for record in map(json.loads, lines)]


def left(folder: JobFolder) -> list[int]:
    return [n for gap in folder.done.gaps(0, NUM_ROWS * 10) for n in range(gap.begin // 10, (gap.end or 0) // 10)]


def run_on(path: Path, file_format: str = "jsonl") -> None:
    """Whatever is left, in slices that come back out of order."""
    folder = opened(path, file_format)
    try:
        todo = left(folder)
        slices = [todo[at : at + 3] for at in range(0, len(todo), 3)]
        for piece in [*slices[1::2], *slices[0::2]]:
            folder.add(rows(*piece), 0.5)
        folder.finish()
    finally:
        folder.close()


@pytest.mark.parametrize("file_format", ["parquet", "jsonl"])
def test_rows_come_in_files_of_the_asked_size(tmp_path: Path, file_format: str) -> None:
    folder = opened(tmp_path / "deep" / "out", file_format, rows_per_file=5)
    folder.add(rows(0, 1, 2))
    assert folder.files == []
    folder.add(rows(*range(3, 12)), 1.5)
    folder.finish()
    folder.close()
    assert [path.name for path in folder.files] == [f"part-00000{i}.{file_format}" for i in range(3)]
    assert sorted(path.name for path in folder.path.iterdir()) == sorted([JOB_FOLDER, *(f.name for f in folder.files)])
    if file_format == "parquet":
        tables = [pq.read_table(path) for path in folder.files]
        assert pa.concat_tables(tables).equals(rows(*range(12)).drop_columns(["answer", "place"]).combine_chunks())
    counts = folder.counts
    assert (counts.rows, counts.errors, counts.completion_tokens, counts.generating_s) == (12, 1, 24, 1.5)
    again = opened(folder.path, file_format)
    assert again.manifest.is_finished
    assert again.counts == counts


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Every call counts down; at 0 the disk is full, and stays so."""
    left = {"calls": 10**9}

    def counted(real):  # type: ignore[no-untyped-def]
        def call(*args: object, **kwargs: object) -> object:
            left["calls"] -= 1
            if left["calls"] < 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return real(*args, **kwargs)

        return call

    monkeypatch.setattr(os, "fsync", counted(os.fsync))
    monkeypatch.setattr(Path, "rename", counted(Path.rename))
    monkeypatch.setattr(Path, "unlink", counted(Path.unlink))
    return left


@pytest.mark.parametrize("file_format", ["jsonl", "openai-batch"])
def test_wherever_it_ends_each_row_is_there_once_after_the_last_run(
    tmp_path: Path, disk: dict[str, int], file_format: str
) -> None:
    num_ended = 0
    for calls in range(60):
        path = tmp_path / str(calls)
        disk["calls"] = calls
        for _ in range(3):  # the second run may end in the recovery from the first
            try:
                run_on(path, file_format)
            except OSError:
                num_ended += 1
                disk["calls"] = calls // 2
        disk["calls"] = 10**9
        if not Manifest.read(path) or not Manifest.read(path).is_finished:  # type: ignore[union-attr]
            run_on(path, file_format)
        assert sorted(ids_in(path)) == sorted(f"r{n}" for n in range(NUM_ROWS))
        opened(path, file_format).close()
        assert [file.name for file in path.glob("errors-*")] == ["errors-000000.jsonl"] * (file_format != "jsonl")
    assert num_ended > 60


WRITER = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_job_folder import NUM_ROWS, left, opened, rows
folder = opened(Path(sys.argv[1]))
print(len(left(folder)), flush=True)
for n in left(folder):
    folder.add(rows(n))
    print(n, flush=True)
folder.finish()
"""


def test_a_killed_job_loses_no_row_that_was_added(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WRITER, str(tmp_path / "out"), str(Path(__file__).parent)]
    expected_left = NUM_ROWS
    for stop_after in (3, 9, 11):
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
            assert writer.stdout is not None
            assert int(writer.stdout.readline()) <= expected_left
            for _ in range(stop_after):
                writer.stdout.readline()
            assert is_running(tmp_path / "out")
            with pytest.raises(UserError, match="another process writes here"):
                opened(tmp_path / "out")
            writer.send_signal(signal.SIGKILL)
        expected_left -= stop_after
    assert not is_running(tmp_path / "out")
    run_on(tmp_path / "out")
    assert sorted(ids_in(tmp_path / "out")) == sorted(f"r{n}" for n in range(NUM_ROWS))


def test_another_job_is_refused_by_what_differs(tmp_path: Path) -> None:
    opened(tmp_path).close()
    with pytest.raises(UserError, match=r"sampling.max_tokens was 64 and is 128, sampling.temperature was 0.0 and"):
        opened(tmp_path, sampling={"max_tokens": 128, "temperature": 1.0})
    opened(tmp_path).close()  # and the refused one has let go


def test_foreign_results_and_lost_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "mine.jsonl").touch()
    with pytest.raises(UserError, match=r"holds results already \(mine.jsonl, 1 in all\)"):
        opened(tmp_path)
    with pytest.raises(UserError, match="is a file"):
        opened(tmp_path / "mine.jsonl")
    run_on(tmp_path / "out")
    (tmp_path / "out" / "part-000001.jsonl").unlink()
    with pytest.raises(UserError, match=r"part-000001.jsonl: is missing"):
        opened(tmp_path / "out")


def test_an_input_without_rows_leaves_nothing_behind(tmp_path: Path) -> None:
    def no_rows() -> int:
        raise UserError("no rows to read")

    with pytest.raises(UserError, match="no rows"):
        JobFolder.open(tmp_path / "out", Fingerprint(settings=SETTINGS), "jsonl", 8, no_rows)
    assert not (tmp_path / "out").exists()


def test_a_former_run_is_set_aside_whole(tmp_path: Path) -> None:
    run_on(tmp_path / "out")
    assert set_aside(tmp_path / "out") == tmp_path / "out.run1"
    assert sorted(ids_in(tmp_path / "out.run1")) == sorted(f"r{n}" for n in range(NUM_ROWS))
    assert set_aside(tmp_path / "out") is None


def test_a_full_disk_is_one_line() -> None:
    told = pytest.raises(UserError, match=r"out: No space left on device; free some, .* the same command goes on")
    with told, full_disk_told(Path("out")):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
