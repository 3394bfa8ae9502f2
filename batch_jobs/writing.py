"""Result rows and the formats of their files; it knows nothing of prompts, engines and Ray."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from batch_jobs.openai_results import result_line

FileFormat = Literal["parquet", "jsonl", "openai-batch"]
FILE_SUFFIX: dict[FileFormat, str] = {"parquet": ".parquet", "jsonl": ".jsonl", "openai-batch": ".jsonl"}
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


ANSWER = "answer"
"""The column that goes with a row to its file, and into files of OpenAI's format only: openai_results.RowAnswer."""
ANSWERED_SCHEMA = RESULT_SCHEMA.append(pa.field(ANSWER, pa.string()))


def results_table(rows: Iterable[ResultRow]) -> pa.Table:
    rows = list(rows)
    columns = {name: [getattr(row, name) for row in rows] for name in RESULT_SCHEMA.names}
    return pa.Table.from_pydict(columns, RESULT_SCHEMA)  # by columns: half the time of a dict a row


def tables_of(rows: pa.Table, file_format: FileFormat) -> dict[str, pa.Table]:
    """What goes into which file of a part, by the name it begins with; OpenAI has a file of its own for errors."""
    if file_format != "openai-batch":
        return {"part": rows.select(RESULT_SCHEMA.names)}
    has_error = pc.is_valid(rows["error"])
    errors = rows.filter(has_error)
    good = rows.filter(pc.invert(has_error)) if len(errors) else rows
    return {"part": good} | ({"errors": errors} if len(errors) else {})


def write_file(path: Path, table: pa.Table, file_format: FileFormat) -> None:
    """On disk when it returns. RESULT_SCHEMA, or ANSWERED_SCHEMA for OpenAI's format."""
    with path.open("wb") as stream:
        if file_format == "parquet":
            pq.write_table(table, stream)
        else:
            for record in _lines(table, file_format):
                stream.write(json.dumps(record, ensure_ascii=False).encode() + b"\n")
        stream.flush()
        os.fsync(stream.fileno())


def _lines(table: pa.Table, file_format: FileFormat) -> Iterator[dict[str, Any]]:
    records = table.to_pylist()
    return (result_line(row, row[ANSWER]) for row in records) if file_format == "openai-batch" else iter(records)
