"""The files of one caller on disk: uploads and results, whole or not there; it knows no HTTP and no batches.

A file is a folder of its content and a record, made beside its place and renamed into it, so that a kill leaves only
what `sweep` removes.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Literal

import msgspec

from batch_jobs.disk import sync_folder
from serve_app.batches.ids import FILE_PREFIX, Page, is_id, new_id

Purpose = Literal["batch", "batch_output"]
RECORD, CONTENT = "record.json", "content"
STAGING_SUFFIX = ".staging"
ABANDONED_S = 3600.0
"""Without a byte for so long an upload is one that a kill ended."""


class FileRecord(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    filename: str
    purpose: Purpose
    bytes: int
    created_at: int
    """Seconds since 1970, as `expires_at`."""
    expires_at: int | None = None

    def object(self) -> dict[str, Any]:
        """OpenAI's File."""
        return {**msgspec.structs.asdict(self), "object": "file", "status": "processed", "status_details": None}


@dataclass(slots=True, kw_only=True)
class StagedFile:
    """A file that is being written, and is not there yet."""

    id: str
    folder: Path
    stream: BinaryIO
    size_bytes: int = field(default=0, init=False)

    def write(self, data: bytes) -> None:
        self.stream.write(data)
        self.size_bytes += len(data)


@dataclass(frozen=True, slots=True, kw_only=True)
class FileStore:
    folder: Path

    @contextmanager
    def staged(self, file_id: str | None = None) -> Iterator[StagedFile]:
        """To be kept with `keep`; what was not kept inside is removed. `file_id`: one that was given out before."""
        file_id = file_id or new_id(FILE_PREFIX)
        folder = self.folder / f".{file_id}{STAGING_SUFFIX}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        try:
            with (folder / CONTENT).open("wb") as stream:
                yield StagedFile(id=file_id, folder=folder, stream=stream)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def keep(self, staged: StagedFile, filename: str, purpose: Purpose, expires_after_s: int | None) -> FileRecord:
        """On disk when it returns; it takes the place of what an earlier attempt left under the same id."""
        now = int(time.time())
        record = FileRecord(
            id=staged.id,
            filename=filename,
            purpose=purpose,
            bytes=staged.size_bytes,
            created_at=now,
            expires_at=None if expires_after_s is None else now + expires_after_s,
        )
        staged.stream.flush()
        os.fsync(staged.stream.fileno())
        with (staged.folder / RECORD).open("wb") as stream:
            stream.write(msgspec.json.encode(record))
            stream.flush()
            os.fsync(stream.fileno())
        sync_folder(staged.folder)
        self._remove(staged.id)
        staged.folder.rename(self.folder / staged.id)
        sync_folder(self.folder)
        return record

    def get(self, file_id: str) -> FileRecord | None:
        """None where there is none, or its time is over."""
        if not is_id(file_id, FILE_PREFIX):
            return None
        try:
            data = (self.folder / file_id / RECORD).read_bytes()
        except FileNotFoundError:
            return None
        record = msgspec.json.decode(data, type=FileRecord)
        return None if record.expires_at is not None and record.expires_at <= time.time() else record

    def content(self, record: FileRecord) -> Path:
        return self.folder / record.id / CONTENT

    def page(self, page: Page, purpose: str | None = None) -> tuple[list[FileRecord], bool]:
        def read(file_id: str) -> FileRecord | None:
            record = self.get(file_id)
            return record if record is not None and purpose in (None, record.purpose) else None

        return page.of(self._names(), read)

    def total_bytes(self) -> int:
        """Of all contents that are kept."""
        return sum(record.bytes for name in self._names() if (record := self.get(name)) is not None)

    def delete(self, file_id: str) -> bool:
        """False where there is none."""
        return self.get(file_id) is not None and self._remove(file_id)

    def sweep(self) -> None:
        """Removes files whose time is over, and what kills left."""
        for name in self._names():
            if self.get(name) is None:
                self._remove(name)
        for leftover in self.folder.glob(f".*{STAGING_SUFFIX}"):
            with suppress(FileNotFoundError):
                if time.time() - _written_at(leftover) > ABANDONED_S:
                    shutil.rmtree(leftover, ignore_errors=True)

    def _names(self) -> list[str]:
        with suppress(FileNotFoundError):
            return [name for name in os.listdir(self.folder) if is_id(name, FILE_PREFIX)]
        return []

    def _remove(self, file_id: str) -> bool:
        """Out of sight in one step, and then from the disk."""
        doomed = self.folder / f".{new_id(FILE_PREFIX)}{STAGING_SUFFIX}"
        try:
            (self.folder / file_id).rename(doomed)
        except FileNotFoundError:
            return False
        shutil.rmtree(doomed, ignore_errors=True)
        return True


def _written_at(folder: Path) -> float:
    """The latest time that something in it was written."""
    return max((entry.stat().st_mtime for entry in (folder, *folder.iterdir())), default=0.0)
