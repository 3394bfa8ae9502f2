"""Where all callers' files and batches lie, each caller's in a folder of its own; it knows no HTTP and runs nothing."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from cluster.config import FleetConfig
from cluster.errors import UserError
from cluster.models import cache_dir
from serve_app.batches.batch_folder import BatchFolder, BatchStore
from serve_app.batches.file_store import FileStore

OWNER_LETTERS = 32
FILES, BATCHES = "files", "batches"


@dataclass(frozen=True, slots=True, kw_only=True)
class Shelf:
    """One caller's."""

    folder: Path

    @classmethod
    def around(cls, batch: BatchFolder) -> Shelf:
        """The one that a batch is of."""
        return cls(folder=batch.path.parents[1])

    @property
    def files(self) -> FileStore:
        return FileStore(folder=self.folder / FILES)

    @property
    def batches(self) -> BatchStore:
        return BatchStore(folder=self.folder / BATCHES)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shelves:
    folder: Path

    @classmethod
    def of(cls, config: FleetConfig) -> Shelves:
        """UserError where the folder cannot be written."""
        configured = config.batches.folder
        folder = cache_dir() / "batches" / config.model.name if configured == "auto" else Path(configured)
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise UserError(f"batches.folder: cannot make {folder} ({error.strerror}); name another one") from None
        if not os.access(folder, os.W_OK | os.X_OK):
            raise UserError(f"batches.folder: cannot write into {folder}; name another one")
        return cls(folder=folder)

    def of_caller(self, caller: str) -> Shelf:
        """`caller`: as auth.Guard names it."""
        return Shelf(folder=self.folder / hashlib.sha256(caller.encode()).hexdigest()[:OWNER_LETTERS])

    def all(self) -> Iterator[Shelf]:
        for entry in os.scandir(self.folder):
            if entry.is_dir() and len(entry.name) == OWNER_LETTERS:
                yield Shelf(folder=Path(entry.path))

    def batches(self) -> Iterator[BatchFolder]:
        """Of all callers, each caller's in the order of their making."""
        for shelf in self.all():
            for name in sorted(shelf.batches.names()):
                with suppress(FileNotFoundError):
                    if (batch := shelf.batches.get(name)) is not None:
                        yield batch
