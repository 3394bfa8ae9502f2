"""Repeated custom_ids are errors of all rows but the first, in every run of a job."""

import json
from pathlib import Path

import pytest

from batch_jobs import repeated_ids
from batch_jobs.input_files import find_input_files
from batch_jobs.reading import Columns, read_rows
from batch_jobs.repeated_ids import marked_files
from cluster.errors import UserError


def batch(path: Path, *row_ids: object) -> None:
    envelope = {"method": "POST", "url": "/v1/completions", "body": {}}
    path.write_text("".join(json.dumps({"custom_id": row_id} | envelope) + "\n\n" for row_id in row_ids))


def test_all_but_the_first_are_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repeated_ids, "FLUSHED_ENTRIES", 3)
    many = [f"id{i}" for i in range(500)]
    batch(tmp_path / "1.jsonl", *many, "a", None, None, "a")
    batch(tmp_path / "2.jsonl", "new", "id7", "a", "\ud800", "\ud800", *many[::100])
    (tmp_path / "3.jsonl").write_text('{"id": "id1", "prompt": "x"}')
    job_folder = tmp_path / "_job"
    job_folder.mkdir()
    for _ in range(2):  # the second reads what the first found
        files = marked_files(find_input_files([str(tmp_path / "*.jsonl")]), job_folder)
        rows = [row for file in files for row in read_rows(file, Columns())]
        repeated = [row.id for row in rows if "is of an earlier row too" in (row.error or "")]
        assert repeated == ["a", "id7", "a", *many[::100]]
        assert len(rows) == 504 + 10 + 1
        assert [path.name for path in job_folder.iterdir()] == ["repeated_ids"]


def test_too_many_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repeated_ids, "MAX_REPEATED", 5)
    batch(tmp_path / "1.jsonl", *["a"] * 7)
    with pytest.raises(UserError, match="6 rows have the custom_id of an earlier row"):
        marked_files(find_input_files([str(tmp_path / "1.jsonl")]), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["1.jsonl"]
