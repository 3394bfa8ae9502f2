"""Input rows from JSONL, CSV, Parquet and text files, one at a time in bounded memory; it knows no tokens and no Ray.

Each comes with its place, and a file is read from any row's place on: so a resumed job does not reread what is done.

pyarrow's JSON reader (and with it Ray Data's) ends at the first malformed line and at a column that changes its type.
Here such a row becomes a row with an error, and the next one is read.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from itertools import islice
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from batch_jobs.input_files import FileKind, InputFile
from batch_jobs.row_places import Place

MAX_LINE_BYTES = 16 * 2**20
"""A longer line is an error of its row: without a bound a file with no line ends would be read into memory whole."""
PARQUET_ROWS = 256
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
MESSAGES_COLUMN = "messages"
DEFAULT_ID_COLUMN = "id"


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """Where a row's prompt and id stand; `id` None takes the column "id" where a row has one."""

    prompt: str = "prompt"
    id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class InputRow:
    """A prompt as text, or a chat as the JSON text of its messages; or what is wrong with the row."""

    id: str
    prompt: str = ""
    is_chat: bool = False
    error: str | None = None


PLACE = "place"
"""The column that goes with a row from its file to the manifest."""
PLACE_TYPE = pa.struct([("file", pa.int32()), *((name, pa.int64()) for name in ("begin", "end", "first", "number"))])
INPUT_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("prompt", pa.string()),
        ("is_chat", pa.bool_()),
        ("error", pa.string()),
        (PLACE, PLACE_TYPE),
    ]
)


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


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacedRow:
    place: Place
    row: InputRow


def read_rows(file: InputFile, columns: Columns) -> Iterator[InputRow]:
    """The file's rows in order."""
    return (placed.row for placed in placed_rows(file, columns))


def placed_rows(file: InputFile, columns: Columns) -> Iterator[PlacedRow]:
    if file.kind == "text":
        columns = Columns()  # a line is a prompt and nothing else
    begin, first = file.begin, file.first
    for found in RECORD_READERS[file.kind](file):
        place = Place(file=file.index, begin=begin, end=found.end, first=first, number=found.number)
        yield PlacedRow(place=place, row=_input_row(file, found.number, found.record, columns))
        begin, first = found.end, found.number + 1


def limited(files: Iterable[InputFile], columns: Columns, max_rows: int | None) -> list[InputFile]:
    """The files that the first `max_rows` rows lie in, the last of them to the last of those rows."""
    if max_rows is None:
        return list(files)
    kept: list[InputFile] = []
    for file in files:
        if max_rows <= 0:
            break
        end = file.begin
        for placed in islice(placed_rows(file, columns), max_rows):
            end, max_rows = placed.place.end, max_rows - 1
        kept.append(file if max_rows else replace(file, end=end))
    return kept


def input_table(rows: Iterable[PlacedRow]) -> pa.Table:
    """INPUT_SCHEMA"""
    return pa.Table.from_pylist([asdict(placed.row) | {PLACE: asdict(placed.place)} for placed in rows], INPUT_SCHEMA)


def places_of(table: pa.Table) -> list[Place]:
    return [Place(**place) for place in table[PLACE].to_pylist()]


def _input_row(file: InputFile, number: int, record: Record, columns: Columns) -> InputRow:
    made_id = f"{file.name}:{number}"
    if isinstance(record, BadRecord):
        return InputRow(id=made_id, error=record.error)
    try:
        row_id = _row_id(record, columns) or made_id
    except ValueError as error:
        return InputRow(id=made_id, error=str(error))
    try:
        prompt, is_chat = _prompt(record, columns)
    except ValueError as error:
        return InputRow(id=row_id, error=str(error))
    return InputRow(id=row_id, prompt=prompt, is_chat=is_chat)


def _row_id(record: dict[str, Any], columns: Columns) -> str | None:
    name = columns.id or DEFAULT_ID_COLUMN
    value = record.get(name)
    if value is None or value == "":
        if columns.id is not None:
            raise ValueError(f"no value in the id column {name!r}; {_columns_of(record)}")
        return None
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise ValueError(f"column {name!r} is {_kind(value)}; an id is text or a whole number")
    return _encodable(name, str(value))


def _prompt(record: dict[str, Any], columns: Columns) -> tuple[str, bool]:
    value = record.get(columns.prompt)
    if value is None:
        messages = record.get(MESSAGES_COLUMN)
        if messages is None:
            raise ValueError(f"no value in column {columns.prompt!r} or {MESSAGES_COLUMN!r}; {_columns_of(record)}")
        return _chat(MESSAGES_COLUMN, messages), True
    if isinstance(value, list):
        return _chat(columns.prompt, value), True
    if not isinstance(value, str):
        raise ValueError(f"column {columns.prompt!r} is {_kind(value)}; a prompt is text or a list of messages")
    if not value.strip():
        raise ValueError(f"column {columns.prompt!r} is empty")
    return _encodable(columns.prompt, value), False


def _chat(column: str, messages: Any) -> str:
    """The messages checked for shape; which roles may stand where is the chat template's to say."""
    if not isinstance(messages, list) or not messages:
        raise ValueError(f"column {column!r} is {_kind(messages)}; a chat is a list of messages, one at least")
    for i, message in enumerate(messages):
        if not isinstance(message, dict):
            raise ValueError(f"{column}[{i}] is {_kind(message)}; a message is an object with role and content")
        for key in ("role", "content"):
            if not isinstance(message.get(key), str):
                raise ValueError(f"{column}[{i}].{key} is {_kind(message.get(key))}; it must be text")
    wanted = [{"role": message["role"], "content": message["content"]} for message in messages]
    return _encodable(column, json.dumps(wanted, ensure_ascii=False))


def _encodable(column: str, text: str) -> str:
    """JSON can spell half a surrogate pair, and bytes that are not UTF-8 arrive as such halves; neither is text."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError(f"column {column!r} holds what is not valid UTF-8") from None
    return text


def _kind(value: Any) -> str:
    if value is None:
        return "missing"
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, int | float):
        return f"the number {value!r}"[:60]
    if isinstance(value, str):
        return "text"
    return {list: "a list", dict: "an object"}.get(type(value), f"a {type(value).__name__}")


def _columns_of(record: dict[str, Any]) -> str:
    names = ", ".join(str(name) for name in islice(record, 8))
    return f"the row has: {names.encode('utf-8', 'replace').decode()}" if names else "the row has no columns"


def _jsonl_records(file: InputFile) -> Iterator[Found]:
    with file.path.open("rb") as stream:
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
    return value if isinstance(value, dict) else BadRecord(error=f"the line is {_kind(value)}; a row is an object")


def _text_records(file: InputFile) -> Iterator[Found]:
    with file.path.open("rb") as stream:
        for line in _lines(stream, file):
            if isinstance(line.record, BadRecord):
                yield Found(record=line.record, number=line.number, end=line.end)
            elif line.record.strip():
                prompt = line.record.rstrip(b"\r\n").decode("utf-8", "surrogateescape")
                yield Found(record={"prompt": prompt}, number=line.number, end=line.end)


def _csv_records(file: InputFile) -> Iterator[Found]:
    with file.path.open("rb") as stream:
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
        with pq.ParquetFile(file.path) as parquet:
            end = parquet.metadata.num_rows if end is None else end
            for record in _parquet_rows(parquet, row):
                if row >= end:
                    return
                row += 1
                yield Found(record=record, number=row, end=row)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        record = BadRecord(error=f"the file is damaged from here on: {reason}")
        yield Found(record=record, number=row + 1, end=max(row + 1, end or 0))


def _parquet_rows(parquet: pq.ParquetFile, begin: int) -> Iterator[dict[str, Any]]:
    """From row `begin` on; groups of rows before it are not read."""
    groups, before = list(range(parquet.metadata.num_row_groups)), 0
    while groups and before + (size := parquet.metadata.row_group(groups[0]).num_rows) <= begin:
        before += size
        groups.pop(0)
    batches = parquet.iter_batches(batch_size=PARQUET_ROWS, row_groups=groups) if groups else iter(())
    rows = (record for batch in batches for record in batch.to_pylist())
    return islice(rows, begin - before, None)


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
    "jsonl": _jsonl_records,
    "csv": _csv_records,
    "parquet": _parquet_records,
    "text": _text_records,
}
"""Numbers count from 1: lines where a line is a record, records in CSV and Parquet."""
