"""Result files in both formats."""

import json
from pathlib import Path

import pyarrow.parquet as pq

from batch_jobs.writing import RESULT_SCHEMA, ResultRow, results_table, write_file


def test_both_formats_give_the_rows_back(tmp_path: Path) -> None:
    row = ResultRow(
        id="r",
        prompt="p",
        text="täxt\n",
        prompt_tokens=1,
        completion_tokens=2,
        finish_reason="stop",
        variant="bf16",
        fingerprint="f",
        error=None,
    )
    table = results_table([row, row])
    write_file(tmp_path / "a.parquet", table, "parquet")
    write_file(tmp_path / "a.jsonl", table, "jsonl")
    assert pq.read_table(tmp_path / "a.parquet").equals(table)
    lines = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert lines == table.to_pylist()
    assert list(lines[0]) == RESULT_SCHEMA.names
