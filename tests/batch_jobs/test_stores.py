"""Files by URI: found, opened at any byte, and known again, through Arrow's file systems and fsspec's."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batch_jobs.input_files import InputFile, approximate_rows, file_end, find_input_files
from batch_jobs.reading import Columns, placed_rows, read_rows
from batch_jobs.stores import shown
from cluster.errors import UserError

FILES = {
    "a.jsonl": b'{"prompt": "one"}\n\n{"prompt": "two"}\n',
    "b.csv": b'prompt,id\n"x\ny",1\nz,2\n',
    "deep/c.txt": b"first\nsecond",
    "deep/.hidden.jsonl": b"",
    "notes.md": b"",
}


@pytest.fixture(params=["file", "memory"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A folder with FILES and a Parquet file, as a URI."""
    root = f"{request.param}://{tmp_path}"
    pq.write_table(pa.table({"prompt": ["p", "q", "r"]}), tmp_path / "d.parquet", row_group_size=2)
    for name, data in {**FILES, "d.parquet": (tmp_path / "d.parquet").read_bytes()}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        with fsspec.open(f"{root}/{name}", "wb") as stream:
            stream.write(data)
    yield root
    fsspec.filesystem("memory").store.clear()


def test_folders_globs_and_files_are_found(root: str) -> None:
    files = find_input_files([root])
    assert [file.name for file in files] == ["a.jsonl", "b.csv", "d.parquet", "deep/c.txt"]
    assert [approximate_rows(file) for file in files] == [3, 3, 3, 2]
    for pattern, names in (("*.jsonl", ["a.jsonl"]), ("**/*.[ct]*", ["b.csv", "c.txt"]), ("deep/c.txt", ["c.txt"])):
        assert [file.name for file in find_input_files([f"{root}/{pattern}"])] == names
    assert len(find_input_files([root, root])) == len(files)


def test_rows_are_read_on_from_any_place(root: str) -> None:
    texts = []
    for file in find_input_files([root]):
        rows = list(placed_rows(file, Columns()))
        for at, placed in enumerate(rows):
            rest = replace(file, begin=placed.place.end, first=placed.place.number + 1)
            assert list(placed_rows(rest, Columns())) == rows[at + 1 :]
        assert file_end(file) - rows[-1].place.end <= 1
        texts += [placed.row.prompt for placed in rows]
    assert texts == ["one", "two", "x\ny", "z", "p", "q", "r", "first", "second"]


def test_a_changed_file_is_another(root: str) -> None:
    def state() -> str:
        (file,) = find_input_files([f"{root}/a.jsonl"])
        return file.source.state

    before = state()
    assert state() == before
    with fsspec.open(f"{root}/a.jsonl", "wb") as stream:
        stream.write(FILES["a.jsonl"][::-1])
    assert state() != before


@pytest.mark.parametrize(
    ("uri", "error"),
    [
        ("file:///no/such/place/in.jsonl", "no such file, folder or pattern"),
        ("file:///tmp/*.no-such-suffix", "no such file, folder or pattern"),
        ("nosuch://bucket/in.jsonl", "nosuch://bucket/in.jsonl: cannot be opened: "),
    ],
)
def test_what_is_not_there_is_one_line(uri: str, error: str) -> None:
    with pytest.raises(UserError) as raised:
        find_input_files([uri])
    assert error in str(raised.value)
    assert "\n" not in str(raised.value)


def test_secrets_of_a_uri_are_not_shown() -> None:
    assert shown("s3://KEY:SECRET@bucket/in.jsonl") == "s3://KEY:...@bucket/in.jsonl"
    assert shown("abfs://container@account.dfs.core.windows.net/a") == "abfs://container@account.dfs.core.windows.net/a"


def saved(folder: Path, split: str, *shards: list[str]) -> None:
    """As save_to_disk of the package datasets 4 writes a dataset."""
    folder.mkdir(parents=True)
    names = [f"data-{i:05d}-of-{len(shards):05d}.arrow" for i in range(len(shards))]
    for name, prompts in zip(names, shards, strict=True):
        table = pa.table({"prompt": prompts, "id": pa.array(range(len(prompts)), pa.int64())})
        with pa.ipc.new_stream(folder / name, table.schema) as writer:
            writer.write_table(table, max_chunksize=1000)
    state = {"_data_files": [{"filename": name} for name in names], "_fingerprint": "f", "_split": split}
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "dataset_info.json").write_text(json.dumps({"features": {}}))


def prompts_in(files: list[InputFile]) -> list[str]:
    return [row.prompt for file in files for row in read_rows(file, Columns())]


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_datasets_on_disk(tmp_path: Path, scheme: str) -> None:
    train = [f"question {i}" for i in range(2500)]
    saved(tmp_path / "ds" / "train", "train", train[:1700], train[1700:])
    saved(tmp_path / "ds" / "test", "test", ["t"])
    (tmp_path / "ds" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    ds = f"{scheme}{tmp_path}/ds"
    files = find_input_files([ds], split="train")
    assert [(file.name, approximate_rows(file)) for file in files] == [
        ("train/data-00000-of-00002.arrow", 1700),
        ("train/data-00001-of-00002.arrow", 800),
    ]
    assert prompts_in(files) == train
    assert prompts_in([replace(files[0], begin=1500, first=1501, end=1501)]) == ["question 1500"]
    assert prompts_in(find_input_files([f"{ds}/test"])) == ["t"]
    for split, error in ((None, "name one with --split"), ("dev", "has the splits train, test")):
        with pytest.raises(UserError, match=error):
            find_input_files([ds], split=split)
    with pytest.raises(UserError, match="is the split 'test'"):
        find_input_files([f"{ds}/test"], split="train")


def test_a_cut_dataset_keeps_its_whole_batches(tmp_path: Path) -> None:
    saved(tmp_path / "ds", "train", [f"q{i}" for i in range(3000)])
    (path,) = (tmp_path / "ds").glob("*.arrow")
    path.write_bytes(path.read_bytes()[:-4000])
    (file,) = find_input_files([str(tmp_path / "ds")])
    *good, last = list(placed_rows(file, Columns()))
    assert [placed.row.prompt for placed in good] == [f"q{i}" for i in range(2000)]
    assert "damaged from here on" in (last.row.error or "")
    assert (last.place.end, file_end(file)) == (2001, 2001)


def test_a_split_of_what_has_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("x")
    with pytest.raises(UserError, match="no input is a folder that a dataset was saved to"):
        find_input_files([str(tmp_path)], split="train")
