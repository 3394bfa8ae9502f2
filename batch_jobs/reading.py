"""Input rows: a record's prompt and id, or what is wrong with it, and its place; it knows no tokens and no Ray.

A file is read from any row's place on: so a resumed job does not reread what is done.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import pyarrow as pa

from batch_jobs.input_files import InputFile
from batch_jobs.openai_lines import BatchLine, custom_id_of
from batch_jobs.prompt_template import PromptTemplate, columns_of
from batch_jobs.records import RECORD_READERS, BadRecord, kind_of
from batch_jobs.row_places import Place

MESSAGES_COLUMN = "messages"
DEFAULT_ID_COLUMN = "id"


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """Where a row's prompt and id stand; `id` None takes the column "id" where a row has one."""

    prompt: str = "prompt"
    id: str | None = None
    template: PromptTemplate | None = None
    """The prompt of other columns, instead of the prompt's own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InputRow:
    """A prompt as text, or a chat as the JSON text of its messages; or what is wrong with the row."""

    id: str
    prompt: str = ""
    is_chat: bool = False
    error: str | None = None
    request: str | None = None
    """openai_lines.BatchLine as JSON, which then has the prompt."""


PLACE = "place"
"""The column that goes with a row from its file to the manifest."""
PLACE_TYPE = pa.struct([("file", pa.int32()), *((name, pa.int64()) for name in ("begin", "end", "first", "number"))])


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacedRow:
    place: Place
    row: InputRow


def read_rows(file: InputFile, columns: Columns) -> Iterator[InputRow]:
    """The file's rows in order."""
    return (placed.row for placed in placed_rows(file, columns))


def placed_rows(file: InputFile, columns: Columns) -> Iterator[PlacedRow]:
    if file.kind == "text":
        columns = Columns(template=columns.template)  # a line is a prompt and nothing else
    begin, first = file.begin, file.first
    for found in RECORD_READERS[file.kind](file):
        place = Place(file=file.index, begin=begin, end=found.end, first=first, number=found.number)
        made_id = f"{file.name}:{found.number}"
        if isinstance(found.record, BadRecord):
            row = InputRow(id=made_id, error=found.record.error)
        elif file.kind == "openai-batch":
            row = _requested_row(made_id, found.record, is_repeated=begin in file.repeated)
        else:
            row = _input_row(made_id, found.record, columns)
        yield PlacedRow(place=place, row=row)
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


def places_column(places: Sequence[Place]) -> pa.StructArray:
    """PLACE_TYPE"""
    # By fields: a third of the time of a dict a row.
    columns = [pa.array([getattr(place, each.name) for place in places], each.type) for each in PLACE_TYPE]
    return pa.StructArray.from_arrays(columns, fields=list(PLACE_TYPE))


def places_of(table: pa.Table) -> list[Place]:
    columns = [column.to_pylist() for column in table[PLACE].combine_chunks().flatten()]
    rows = zip(*columns, strict=True)
    return [
        Place(file=file, begin=begin, end=end, first=first, number=number) for file, begin, end, first, number in rows
    ]


def _requested_row(made_id: str, record: dict[str, Any], *, is_repeated: bool) -> InputRow:
    """A row as OpenAI's Batch format has it."""
    try:
        row_id = _encodable("custom_id", custom_id_of(record))
    except ValueError as error:
        return InputRow(id=made_id, error=str(error))
    if is_repeated:
        return InputRow(id=row_id, error=f"custom_id {row_id!r} is of an earlier row too; each row needs its own")
    try:
        line = BatchLine.of(record)
        _encodable("body", line.body)
        return InputRow(id=row_id, request=line.encoded())
    except ValueError as error:
        return InputRow(id=row_id, error=str(error))


def _input_row(made_id: str, record: dict[str, Any], columns: Columns) -> InputRow:
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
            raise ValueError(f"no value in the id column {name!r}; {columns_of(record)}")
        return None
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise ValueError(f"column {name!r} is {kind_of(value)}; an id is text or a whole number")
    return _encodable(name, str(value))


def _prompt(record: dict[str, Any], columns: Columns) -> tuple[str, bool]:
    if columns.template is not None:
        prompt = columns.template.fill(record)
        if not prompt.strip():
            raise ValueError("the template gives an empty prompt")
        return _encodable("template", prompt), False
    value = record.get(columns.prompt)
    if value is None:
        messages = record.get(MESSAGES_COLUMN)
        if messages is None:
            raise ValueError(f"no value in column {columns.prompt!r} or {MESSAGES_COLUMN!r}; {columns_of(record)}")
        return _chat(MESSAGES_COLUMN, messages), True
    if isinstance(value, list):
        return _chat(columns.prompt, value), True
    if not isinstance(value, str):
        raise ValueError(f"column {columns.prompt!r} is {kind_of(value)}; a prompt is text or a list of messages")
    if not value.strip():
        raise ValueError(f"column {columns.prompt!r} is empty")
    return _encodable(columns.prompt, value), False


def _chat(column: str, messages: Any) -> str:
    """The messages checked for shape; which roles may stand where is the chat template's to say."""
    if not isinstance(messages, list) or not messages:
        raise ValueError(f"column {column!r} is {kind_of(messages)}; a chat is a list of messages, one at least")
    for i, message in enumerate(messages):
        if not isinstance(message, dict):
            raise ValueError(f"{column}[{i}] is {kind_of(message)}; a message is an object with role and content")
        for key in ("role", "content"):
            if not isinstance(message.get(key), str):
                raise ValueError(f"{column}[{i}].{key} is {kind_of(message.get(key))}; it must be text")
    wanted = [{"role": message["role"], "content": message["content"]} for message in messages]
    return _encodable(column, json.dumps(wanted, ensure_ascii=False))


def _encodable(column: str, text: str) -> str:
    """JSON can spell half a surrogate pair, and bytes that are not UTF-8 arrive as such halves; neither is text."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError(f"column {column!r} holds what is not valid UTF-8") from None
    return text
