"""Result rows on disk before their file is full, so that a kill costs only the rows in flight; it names no files.

An Arrow stream: a kill leaves it readable up to the last whole batch.
"""

from __future__ import annotations

import os
from pathlib import Path

import pyarrow as pa


class RowJournal:
    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self.path = path
        self._stream = path.open("wb")
        self._writer = pa.ipc.new_stream(self._stream, schema)
        self._stream.flush()

    def append(self, rows: pa.Table) -> None:
        """In the kernel's hands when it returns: a killed process loses nothing, a dead machine what was not synced."""
        self._writer.write_table(rows)
        self._stream.flush()

    def sync(self) -> None:
        self._stream.flush()
        os.fsync(self._stream.fileno())

    def close(self) -> None:
        self._stream.close()  # without the writer's end mark: a stream that is read to its end needs none


def read_journal(path: Path, schema: pa.Schema) -> pa.Table:
    """Every whole batch; none where there is no journal or its head is torn."""
    batches: list[pa.RecordBatch] = []
    try:
        with path.open("rb") as stream, pa.ipc.open_stream(stream) as reader:
            for batch in reader:
                batches.append(batch)
    except (pa.ArrowInvalid, OSError):
        pass  # no journal, or the tail that a kill cut off
    return pa.Table.from_batches([batch for batch in batches if batch.schema.equals(schema)], schema)
