"""A batch on disk: what was asked, its state and marks, each file with one writer; it runs nothing.

request.json   what was asked for, and input.jsonl: a link to its file, which a client may delete meanwhile
cancel         the time at which a client cancelled it
failure        why it cannot be run; written by the supervisor, as `log` is by the processes it starts
state.json     written by the process that works on the batch, which holds `lock`, as is
progress.json  what is done so far
job/           the output folder of the job
"""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from batch_jobs.disk import sync_folder, write_whole
from serve_app.batches.ids import BATCH_PREFIX, Page, is_id
from serve_app.batches.record import BatchRequest, BatchState, Progress, batch_object

STAGING_SUFFIX = ".staging"
ABANDONED_S = 3600.0
T = TypeVar("T", bound=msgspec.Struct)


class BatchBusyError(Exception):
    """Another process works on the batch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchJob:
    """A job of generate's."""

    input: Path
    output: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchFolder:
    path: Path

    @property
    def input(self) -> Path:
        return self.path / "input.jsonl"

    @property
    def jobs(self) -> list[BatchJob]:
        """In their order; all but the last are over."""
        number = 0
        while self._job(number + 1).input.exists():
            number += 1
        return [self._job(each) for each in range(number + 1)]

    def next_job(self) -> BatchJob:
        """Begun once its input is there."""
        return self._job(len(self.jobs))

    def _job(self, number: int) -> BatchJob:
        rows = self.path / f"rest-{number}.jsonl" if number else self.input
        return BatchJob(input=rows, output=self.path / f"job-{number}")

    @property
    def log(self) -> Path:
        return self.path / "log"

    @property
    def request(self) -> BatchRequest:
        return msgspec.json.decode((self.path / "request.json").read_bytes(), type=BatchRequest)

    @property
    def state(self) -> BatchState:
        return self._read("state.json", BatchState())

    def set_state(self, state: BatchState) -> None:
        write_whole(self.path / "state.json", msgspec.json.encode(state))

    @property
    def progress(self) -> Progress:
        return self._read("progress.json", Progress())

    def set_progress(self, progress: Progress) -> None:
        write_whole(self.path / "progress.json", msgspec.json.encode(progress))

    @property
    def cancelled_at(self) -> int | None:
        text = self._text("cancel")
        return int(text) if text else None

    def cancel(self, now_s: float) -> None:
        """What was cancelled before keeps its time."""
        if self.cancelled_at is None:
            write_whole(self.path / "cancel", str(int(now_s)).encode())

    @property
    def failure(self) -> str | None:
        return self._text("failure")

    def fail(self, reason: str) -> None:
        write_whole(self.path / "failure", reason.encode())

    def is_due(self, now_s: float) -> bool:
        """Whether it is to end with what is done."""
        return self.cancelled_at is not None or self.failure is not None or self.request.expires_at <= now_s

    def object(self) -> dict[str, Any]:
        """OpenAI's Batch."""
        return batch_object(self.request, self.state, self.progress, self.cancelled_at)

    def clear(self) -> None:
        """Of what only a running batch needs."""
        for job in reversed(self.jobs):
            shutil.rmtree(job.output, ignore_errors=True)
            job.input.unlink(missing_ok=True)

    @contextmanager
    def held(self) -> Iterator[None]:
        """By this process alone; BatchBusyError where another holds it. The kernel lets go of it at a kill."""
        with (self.path / "lock").open("a+b") as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise BatchBusyError(self.path.name) from None
            yield

    def _read(self, name: str, default: T) -> T:
        try:
            return msgspec.json.decode((self.path / name).read_bytes(), type=type(default))
        except FileNotFoundError:
            return default

    def _text(self, name: str) -> str | None:
        with suppress(FileNotFoundError):
            return (self.path / name).read_text()
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchStore:
    """The batches of one caller."""

    folder: Path

    def create(self, request: BatchRequest, content: Path) -> BatchFolder:
        """There in whole or not at all. FileNotFoundError where the input was deleted just now."""
        staging = self.folder / f".{request.id}{STAGING_SUFFIX}"
        staging.mkdir(parents=True)
        try:
            os.link(content, staging / "input.jsonl")
            write_whole(staging / "request.json", msgspec.json.encode(request))
            sync_folder(staging)
            staging.rename(self.folder / request.id)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
        sync_folder(self.folder)
        return BatchFolder(path=self.folder / request.id)

    def get(self, batch_id: str) -> BatchFolder | None:
        folder = BatchFolder(path=self.folder / batch_id)
        return folder if is_id(batch_id, BATCH_PREFIX) and folder.path.is_dir() else None

    def page(self, page: Page) -> tuple[list[BatchFolder], bool]:
        return page.of(self.names(), self.get)

    def names(self) -> list[str]:
        with suppress(FileNotFoundError):
            return [name for name in os.listdir(self.folder) if is_id(name, BATCH_PREFIX)]
        return []

    def sweep(self) -> None:
        """Removes what a kill left of making one."""
        for leftover in self.folder.glob(f".*{STAGING_SUFFIX}"):
            with suppress(FileNotFoundError):
                if time.time() - leftover.stat().st_mtime > ABANDONED_S:
                    shutil.rmtree(leftover, ignore_errors=True)
