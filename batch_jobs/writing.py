"""Result files, each whole or not there: staged, synced, renamed; it knows nothing of prompts, engines and Ray."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq

from cluster.errors import UserError

FileFormat = Literal["parquet", "jsonl"]
STAGING_SUFFIX = ".staging"
RESULT_SUFFIXES = (".parquet", ".jsonl")


@dataclass(frozen=True, slots=True, kw_only=True)
class ResultRow:
    """A row of the output; its fields are the columns, in this order."""

    id: str
    prompt: str
    """The prompt's text, or the messages of a chat as JSON."""
    text: str | None
    prompt_tokens: int
    completion_tokens: int
    finish_reason: str
    variant: str
    error: str | None


RESULT_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("prompt", pa.string()),
        ("text", pa.string()),
        ("prompt_tokens", pa.int32()),
        ("completion_tokens", pa.int32()),
        ("finish_reason", pa.string()),
        ("variant", pa.string()),
        ("error", pa.string()),
    ]
)


@dataclass(slots=True, kw_only=True)
class OutputFolder:
    """A folder that takes rows and holds finished files of `rows_per_file` rows.

    A file has its final name only once its bytes are on disk, so whoever lists *.parquet or *.jsonl sees whole files
    at any moment, after a kill -9 too; the staging file that a killed job leaves is removed by the next one.
    """

    path: Path
    format: FileFormat
    rows_per_file: int
    files: list[Path] = field(default_factory=list)
    _pending: list[pa.Table] = field(default_factory=list)

    @classmethod
    def create(cls, path: Path, file_format: FileFormat, rows_per_file: int) -> OutputFolder:
        """Refuses a folder that holds results already; clears what a killed job left half done."""
        check_output_folder(path)
        try:
            path.mkdir(parents=True, exist_ok=True)
            for leftover in path.glob(f"*{STAGING_SUFFIX}"):
                leftover.unlink()
            _sync_folder(path)
        except OSError as error:
            raise UserError(f"{path}: cannot be written: {error.strerror}; give another folder with -o") from None
        return cls(path=path, format=file_format, rows_per_file=rows_per_file)

    def add(self, rows: pa.Table) -> None:
        self._pending.append(rows)
        while self._num_pending >= self.rows_per_file:
            self._commit(self.rows_per_file)

    def commit(self) -> None:
        """Writes what has been added so far, as a smaller file if need be."""
        if self._num_pending:
            self._commit(self._num_pending)

    @property
    def _num_pending(self) -> int:
        return sum(len(table) for table in self._pending)

    def _commit(self, num_rows: int) -> None:
        pending = pa.concat_tables(self._pending)
        final = self.path / f"part-{len(self.files):06d}.{self.format}"
        write_whole_file(final, pending.slice(0, num_rows), self.format)
        self.files.append(final)
        self._pending = [pending.slice(num_rows)] if len(pending) > num_rows else []


def check_output_folder(path: Path) -> None:
    if path.exists() and not path.is_dir():
        raise UserError(f"{path}: is a file; -o takes a folder")
    results = sorted(file.name for file in path.glob("*") if file.suffix in RESULT_SUFFIXES) if path.exists() else []
    if results:
        raise UserError(f"{path}: holds results already ({results[0]}, {len(results)} in all); give an empty folder")


def results_table(rows: Iterable[ResultRow]) -> pa.Table:
    return pa.Table.from_pylist([asdict(row) for row in rows], schema=RESULT_SCHEMA)


def write_whole_file(final: Path, table: pa.Table, file_format: FileFormat) -> None:
    staging = final.with_name(final.name + STAGING_SUFFIX)
    with staging.open("wb") as stream:
        if file_format == "parquet":
            pq.write_table(table, stream)
        else:
            for record in table.to_pylist():
                stream.write(json.dumps(record, ensure_ascii=False).encode() + b"\n")
        stream.flush()
        os.fsync(stream.fileno())
    staging.rename(final)
    _sync_folder(final.parent)


def _sync_folder(path: Path) -> None:
    """A rename is on disk only once its folder is."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
