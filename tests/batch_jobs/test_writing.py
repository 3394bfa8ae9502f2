"""Result files: whole or not there, also when the writer is killed; leftovers cleared; results never overwritten."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batch_jobs.writing import RESULT_SCHEMA, OutputFolder, ResultRow, results_table
from cluster.errors import UserError


def rows(first: int, count: int) -> pa.Table:
    return results_table(
        ResultRow(
            id=f"r{i}",
            prompt="p",
            text="täxt\n",
            prompt_tokens=1,
            completion_tokens=2,
            finish_reason="stop",
            variant="bf16",
            error=None,
        )
        for i in range(first, first + count)
    )


@pytest.mark.parametrize("file_format", ["parquet", "jsonl"])
def test_rows_come_back_in_files_of_the_asked_size(tmp_path: Path, file_format: str) -> None:
    folder = OutputFolder.create(tmp_path / "deep" / "out", file_format, rows_per_file=5)
    folder.add(rows(0, 3))
    assert folder.files == []
    folder.add(rows(3, 9))
    folder.commit()
    folder.commit()
    assert sorted(path.name for path in folder.path.iterdir()) == [f"part-00000{i}.{file_format}" for i in range(3)]
    if file_format == "parquet":
        tables = [pq.read_table(path) for path in folder.files]
        assert all(table.schema.equals(RESULT_SCHEMA) for table in tables)
        assert pa.concat_tables(tables).equals(rows(0, 12).combine_chunks())
    else:
        lines = [json.loads(line) for path in folder.files for line in path.read_text().splitlines()]
        assert lines == rows(0, 12).to_pylist()
        assert list(lines[0]) == RESULT_SCHEMA.names
        assert len(folder.files[0].read_text().splitlines()) == 5


def test_results_are_never_overwritten_and_leftovers_are_cleared(tmp_path: Path) -> None:
    (tmp_path / "part-000000.jsonl.staging").write_text("half a li")
    folder = OutputFolder.create(tmp_path, "jsonl", rows_per_file=1)
    assert list(tmp_path.iterdir()) == []
    folder.add(rows(0, 1))
    for file_format in ("jsonl", "parquet"):
        with pytest.raises(UserError, match=r"holds results already \(part-000000.jsonl, 1 in all\)"):
            OutputFolder.create(tmp_path, file_format, rows_per_file=1)
    with pytest.raises(UserError, match="is a file"):
        OutputFolder.create(folder.files[0], "jsonl", rows_per_file=1)


WRITER = """
import sys
from pathlib import Path
from batch_jobs.writing import OutputFolder
sys.path.insert(0, sys.argv[3])
from test_writing import rows
folder = OutputFolder.create(Path(sys.argv[1]), sys.argv[2], rows_per_file=2000)
print("writing", flush=True)
while True:
    folder.add(rows(0, 2000))
"""


@pytest.mark.parametrize("file_format", ["parquet", "jsonl"])
def test_a_killed_writer_leaves_only_whole_files(tmp_path: Path, file_format: str) -> None:
    for round_number in range(3):
        out = tmp_path / str(round_number)
        command = [sys.executable, "-c", WRITER, str(out), file_format, str(Path(__file__).parent)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as writer:
            assert writer.stdout is not None
            assert writer.stdout.readline()
            time.sleep(0.15 + 0.03 * round_number)
            writer.send_signal(signal.SIGKILL)
        finished = list(out.glob(f"*.{file_format}"))
        for path in finished:
            count = len(pq.read_table(path)) if file_format == "parquet" else len(path.read_text().splitlines())
            assert count == 2000
        for leftover in out.iterdir():
            assert leftover in finished or leftover.suffix == ".staging"
