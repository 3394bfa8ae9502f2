"""Records of JSONL, CSV, Parquet, text and Arrow files, one at a time in bounded memory; it knows no prompts.

A file is read from any record on, and one that cannot be read is a BadRecord, behind which the next one is read.
pyarrow's JSON reader (and with it Ray Data's) ends at the first malformed line and at a column that changes its type.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from batch_jobs.input_files import FileKind, InputFile

MAX_LINE_BYTES = 16 * 2**20
"""A longer line is an error of its row: without a bound a file with no line ends would be read into memory whole."""
BATCH_ROWS = 256
"""Of a Parquet or Arrow file that are Python objects at once."""
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True, kw_only=True)
class BadRecord:
    """A record that could not be read as fields."""

    error: str


Record = dict[str, Any] | BadRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A record, its number and where it ends."""

    record: Record
    number: int
    end: int


def kind_of(value: Any) -> str:
    if value is None:
        return "missing"
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, int | float):
        return f"the number {value!r}"[:60]
    if isinstance(value, str):
        return "text"
    return {list: "a list", dict: "an object"}.get(type(value), f"a {type(value).__name__}")


def jsonl_records(file: InputFile) -> Iterator[Found]:
    with file.source.open() as stream:
        for line in _lines(stream, file):
            if isinstance(line.record, BadRecord):
                yield Found(record=line.record, number=line.number, end=line.end)
            elif line.record.strip():
                yield Found(record=_json_record(line.record), number=line.number, end=line.end)


def _json_record(line: bytes) -> Record:
    try:
        value = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        return BadRecord(error=f"not valid UTF-8 at byte {error.start} of the line")
    except RecursionError:
        return BadRecord(error="malformed JSON: nested too deeply")
    except ValueError as error:
        return BadRecord(error=f"malformed JSON: {error}")
    return value if isinstance(value, dict) else BadRecord(error=f"the line is {kind_of(value)}; a row is an object")


def _text_records(file: InputFile) -> Iterator[Found]:
    with file.source.open() as stream:
        for line in _lines(stream, file):
            if isinstance(line.record, BadRecord):
                yield Found(record=line.record, number=line.number, end=line.end)
            elif line.record.strip():
                prompt = line.record.rstrip(b"\r\n").decode("utf-8", "surrogateescape")
                yield Found(record={"prompt": prompt}, number=line.number, end=line.end)


def _csv_records(file: InputFile) -> Iterator[Found]:
    with file.source.open() as stream:
        # csv takes a line at a time and none beyond its record, so the stream stands at the record's end.
        reader = csv.reader(_csv_lines(stream, replace(file, begin=0)), delimiter=file.delimiter)
        header = next(reader, [])
        if file.begin:
            reader = csv.reader(_csv_lines(stream, file), delimiter=file.delimiter)
        number = file.first - 1
        while True:
            number += 1
            try:
                fields = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield Found(record=BadRecord(error=f"malformed CSV: {error}"), number=number, end=stream.tell())
                continue
            if fields:
                yield Found(record=_csv_record(header, fields), number=number, end=stream.tell())


def _csv_lines(stream: BinaryIO, file: InputFile) -> Iterator[str]:
    # A field past csv's own limit (131072 characters) is an error of its record; a line past ours is made one.
    too_long = b"-" * (csv.field_size_limit() + 1)
    for line in _lines(stream, file):
        content = too_long if isinstance(line.record, BadRecord) else line.record
        yield content.decode("utf-8", "surrogateescape")


def _csv_record(header: list[str], fields: list[str]) -> Record:
    if len(fields) != len(header):
        return BadRecord(error=f"{len(fields)} fields, the header has {len(header)}; quote fields that hold a comma")
    return {name: field or None for name, field in zip(header, fields, strict=True)}


def _parquet_records(file: InputFile) -> Iterator[Found]:
    row, end = file.begin, file.end
    try:
        with file.source.open_random() as stream, pq.ParquetFile(stream) as parquet:
            end = parquet.metadata.num_rows if end is None else end
            for record in _parquet_rows(parquet, row):
                if row >= end:
                    return
                row += 1
                yield Found(record=record, number=row, end=row)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        yield _damaged(row, end, error)


def _damaged(row: int, end: int | None, error: Exception) -> Found:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    record = BadRecord(error=f"the file is damaged from here on: {reason}")
    return Found(record=record, number=row + 1, end=max(row + 1, end or 0))


def _parquet_rows(parquet: pq.ParquetFile, begin: int) -> Iterator[dict[str, Any]]:
    """From row `begin` on; groups of rows before it are not read."""
    groups, before = list(range(parquet.metadata.num_row_groups)), 0
    while groups and before + (size := parquet.metadata.row_group(groups[0]).num_rows) <= begin:
        before += size
        groups.pop(0)
    batches = parquet.iter_batches(batch_size=BATCH_ROWS, row_groups=groups) if groups else iter(())
    rows = (record for batch in batches for record in batch.to_pylist())
    return islice(rows, begin - before, None)


def _arrow_records(file: InputFile) -> Iterator[Found]:
    row = file.begin
    try:
        with file.source.open_mapped() as stream, pa.ipc.open_stream(stream) as reader:
            for record in _arrow_rows(reader, row):
                if file.end is not None and row >= file.end:
                    return
                row += 1
                yield Found(record=record, number=row, end=row)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        if file.end is None or row < file.end:
            yield _damaged(row, file.end, error)


def _arrow_rows(batches: Iterable[pa.RecordBatch], begin: int) -> Iterator[dict[str, Any]]:
    """From row `begin` on; what is before it is passed over."""
    before = 0
    for batch in batches:
        for at in range(max(0, begin - before), batch.num_rows, BATCH_ROWS):
            yield from batch.slice(at, BATCH_ROWS).to_pylist()
        before += batch.num_rows


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    record: bytes | BadRecord
    number: int
    end: int


def _lines(stream: BinaryIO, file: InputFile) -> Iterator[Line]:
    """From the file's begin to its end, without a byte order mark; an over-long one is skipped in pieces."""
    stream.seek(file.begin)
    number, end = file.first, file.begin
    while (file.end is None or end < file.end) and (line := stream.readline(MAX_LINE_BYTES)):
        record: bytes | BadRecord = line.removeprefix(BYTE_ORDER_MARK) if end == 0 else line
        if len(line) >= MAX_LINE_BYTES and not line.endswith(b"\n"):
            while (rest := stream.readline(MAX_LINE_BYTES)) and not rest.endswith(b"\n"):
                pass
            record = BadRecord(error=f"the line is longer than {MAX_LINE_BYTES} bytes")
        end = stream.tell()
        yield Line(record=record, number=number, end=end)
        number += 1


RECORD_READERS: dict[FileKind, Callable[[InputFile], Iterator[Found]]] = {
    "jsonl": jsonl_records,
    "openai-batch": jsonl_records,
    "csv": _csv_records,
    "parquet": _parquet_records,
    "text": _text_records,
    "arrow": _arrow_records,
}
"""Numbers count from 1: lines where a line is a record, records in CSV, Parquet and Arrow."""
