"""Files are there whole or not at all, whatever ends their making, and go when their time is over."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from serve_app.batches.file_store import FileRecord, FileStore
from serve_app.batches.ids import FILE_PREFIX, Page, new_id


@pytest.fixture
def store(tmp_path: Path) -> FileStore:
    return FileStore(folder=tmp_path / "files")


def kept(store: FileStore, content: bytes = b"{}\n", expires_after_s: int | None = None, **ids: str) -> FileRecord:
    with store.staged(**ids) as staged:
        staged.write(content)
        return store.keep(staged, "requests.jsonl", "batch", expires_after_s)


def test_a_file_is_kept_as_it_came(store: FileStore) -> None:
    record = kept(store, b"abc", expires_after_s=3600)
    assert store.get(record.id) == record
    assert store.content(record).read_bytes() == b"abc"
    assert (record.bytes, record.expires_at) == (3, record.created_at + 3600)
    assert store.total_bytes() == 3


def test_what_is_not_kept_leaves_nothing(store: FileStore) -> None:
    with store.staged() as staged:
        staged.write(b"half")
    assert list(store.folder.iterdir()) == []
    assert store.page(Page(limit=10)) == ([], False)


def test_a_file_written_again_under_its_id_takes_the_other_ones_place(store: FileStore) -> None:
    file_id = new_id(FILE_PREFIX)
    kept(store, b"first", file_id=file_id)
    record = kept(store, b"second", file_id=file_id)
    assert store.content(record).read_bytes() == b"second"
    assert [path.name for path in store.folder.iterdir()] == [file_id]


def test_a_deleted_file_is_gone(store: FileStore) -> None:
    record = kept(store)
    assert store.delete(record.id)
    assert not store.delete(record.id)
    assert store.get(record.id) is None
    assert list(store.folder.iterdir()) == []


def test_a_file_past_its_time_is_not_there_and_is_swept(store: FileStore) -> None:
    old, young = kept(store, expires_after_s=0), kept(store, expires_after_s=60)
    assert store.get(old.id) is None
    assert not store.delete(old.id)
    store.sweep()
    assert [path.name for path in store.folder.iterdir()] == [young.id]


def test_what_a_kill_left_is_swept_once_it_is_old(store: FileStore) -> None:
    for age_s, name in ((7200, "old"), (0, "young")):
        folder = store.folder / f".{name}.staging"
        folder.mkdir(parents=True)
        (folder / "content").write_bytes(b"half")
        for path in (folder / "content", folder):
            os.utime(path, (time.time() - age_s,) * 2)
    store.sweep()
    assert [path.name for path in store.folder.iterdir()] == [".young.staging"]


@pytest.mark.parametrize("name", ["../files", "..", "", "file-", "file-" + "0" * 35 + "/../x"])
def test_no_path_is_made_of_what_is_no_id(store: FileStore, name: str) -> None:
    kept(store)
    assert store.get(name) is None
    assert not store.delete(name)


def test_a_list_of_one_purpose(store: FileStore) -> None:
    record = kept(store)
    assert store.page(Page(limit=10), "batch") == ([record], False)
    assert store.page(Page(limit=10), "batch_output") == ([], False)
