"""Result rows and the formats of their files; it knows nothing of prompts, engines and Ray."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq

FileFormat = Literal["parquet", "jsonl"]
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
    fingerprint: str
    """Of the job: rows of one never mix with those of another."""
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
        ("fingerprint", pa.string()),
        ("error", pa.string()),
    ]
)


def results_table(rows: Iterable[ResultRow]) -> pa.Table:
    return pa.Table.from_pylist([asdict(row) for row in rows], schema=RESULT_SCHEMA)


def write_file(path: Path, table: pa.Table, file_format: FileFormat) -> None:
    """On disk when it returns."""
    with path.open("wb") as stream:
        if file_format == "parquet":
            pq.write_table(table, stream)
        else:
            for record in table.to_pylist():
                stream.write(json.dumps(record, ensure_ascii=False).encode() + b"\n")
        stream.flush()
        os.fsync(stream.fileno())
