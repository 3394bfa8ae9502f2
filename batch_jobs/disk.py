"""Files that are there whole or not at all, and a disk that is full; it knows no contents."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cluster.errors import UserError


def write_whole(path: Path, data: bytes) -> None:
    """Beside it first, on disk, then in its place; a link stays a link."""
    path = path.resolve()
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.unfinished")
    try:
        with unfinished.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def sync_folder(path: Path) -> None:
    """A new name is on disk only once its folder is."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def full_disk_told(path: Path) -> Iterator[None]:
    """As a UserError; for jobs that go on where they ended."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise UserError(
            f"{path}: {error.strerror}; free some, or give another -o; the same command goes on where this one ended"
        ) from None
