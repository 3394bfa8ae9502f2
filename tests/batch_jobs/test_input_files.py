"""Which files a job finds, and the one line it says where it cannot read them."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batch_jobs.input_files import approximate_rows, find_input_files
from cluster.errors import UserError


def touch(path: Path, text: str = '{"prompt": "x"}\n') -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_folders_globs_and_files_give_each_file_once_in_order(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.jsonl", "deep/c.csv", "deep/a.jsonl", ".hidden.jsonl", "_tmp/x.jsonl", "notes.md"):
        touch(tmp_path / name)
    names = [file.name for file in find_input_files([str(tmp_path)])]
    assert names == ["a.jsonl", "b.jsonl", "deep/a.jsonl", "deep/c.csv"]
    again = find_input_files([str(tmp_path / "*.jsonl"), str(tmp_path / "b.jsonl"), str(tmp_path)])
    assert len(again) == 4


def test_files_of_one_name_make_different_ids(tmp_path: Path) -> None:
    files = find_input_files([str(touch(tmp_path / "x" / "in.jsonl")), str(touch(tmp_path / "y" / "in.jsonl"))])
    assert len({file.name for file in files}) == 2


@pytest.mark.parametrize(
    ("name", "text", "error"),
    [
        ("in.doc", "x", "cannot tell its kind"),
        ("in.json", '\n [{"prompt": "x"}]', "is a JSON array"),
        ("in.parquet", "not parquet at all", "is not a Parquet file"),
        ("in.csv", "\ufeffid".encode("utf-16").decode("latin-1"), "UTF-16"),
    ],
)
def test_what_cannot_be_read_is_one_line(tmp_path: Path, name: str, text: str, error: str) -> None:
    (tmp_path / name).write_text(text, encoding="latin-1")
    with pytest.raises(UserError, match=error) as raised:
        find_input_files([str(tmp_path / name)])
    assert "\n" not in str(raised.value)


def test_nothing_to_read_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file, folder or pattern"):
        find_input_files([str(tmp_path / "missing.jsonl")])
    with pytest.raises(UserError, match="no file to read in this folder"):
        find_input_files([str(tmp_path)])


def test_rows_are_counted_by_size(tmp_path: Path) -> None:
    touch(tmp_path / "a.jsonl", "1\n2\n3")
    touch(tmp_path / "b.csv", "prompt\nx\ny\n")
    pq.write_table(pa.table({"prompt": ["x"] * 7}), tmp_path / "c.parquet")
    files = find_input_files([str(tmp_path)])
    assert [approximate_rows(file) for file in files] == [3, 2, 7]


LINE = '{"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": {}}'


def test_batch_files_are_recognised_by_their_first_line(tmp_path: Path) -> None:
    touch(tmp_path / "a.jsonl", f"\ufeff\n \n{LINE}\n")
    touch(tmp_path / "b.jsonl", '{"custom_id": "a", "prompt": "x"}\n' + LINE)
    touch(tmp_path / "c.jsonl", "")
    assert [file.kind for file in find_input_files([str(tmp_path)])] == ["openai-batch", "jsonl", "jsonl"]
    forced = find_input_files([str(touch(tmp_path / "plain", "cut\n"))], input_format="openai-batch")
    assert [file.kind for file in forced] == ["openai-batch"]
    with pytest.raises(UserError, match="is csv; --input-format openai-batch reads JSON lines"):
        find_input_files([str(touch(tmp_path / "d.csv"))], input_format="openai-batch")


def test_a_link_is_read_as_what_it_is_named(tmp_path: Path) -> None:
    (tmp_path / "in.tsv").symlink_to(touch(tmp_path / "blob", "prompt\tid\n"))
    (file,) = find_input_files([str(tmp_path / "in.tsv")])
    assert (file.name, file.kind, file.delimiter) == ("in.tsv", "csv", "\t")
