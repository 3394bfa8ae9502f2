"""Which files a job reads, their kinds and about how many rows they hold; it reads no rows."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import BinaryIO, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from batch_jobs.dataset_folders import dataset_files
from batch_jobs.stores import Folder, StoredFile, listed, shown
from cluster.errors import UserError

FileKind = Literal["jsonl", "openai-batch", "csv", "parquet", "text", "arrow"]
InputFormat = Literal["auto", "openai-batch"]

KINDS: dict[str, FileKind] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".txt": "text",
    ".arrow": "arrow",
}
BATCH_FIELDS = {"custom_id", "method", "url", "body"}
"""Of a line of OpenAI's Batch format."""
HEAD_BYTES = 2**20
"""Of a file's first line: a longer one is not recognised as OpenAI's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InputFile:
    """A file of the job, or what of it is to be read; `name` is what ids made from a row's position begin with."""

    source: StoredFile
    name: str
    kind: FileKind
    delimiter: str = ","
    """Of CSV."""
    index: int = 0
    """Among the job's files."""
    begin: int = 0
    """Where to begin: a byte where records are lines, a row in Parquet and Arrow, as in row_places.Place."""
    first: int = 1
    """The number of the record there."""
    end: int | None = None
    """Where to end; None: at the file's own end."""
    repeated: frozenset[int] = frozenset()
    """Where rows begin whose custom_id an earlier row has."""


def find_input_files(
    inputs: Iterable[str], *, split: str | None = None, input_format: InputFormat = "auto"
) -> list[InputFile]:
    """Files, folders (searched in depth), glob patterns and URIs as files in a stable order, each file once.

    `split` is of a Hugging Face DatasetDict.
    """
    found: dict[StoredFile, InputFile] = {}
    num_datasets = 0
    for text in inputs:
        place = listed(text)
        dataset = dataset_files(shown(text), place.files, split) if isinstance(place, Folder) else None
        num_datasets += dataset is not None
        named = dataset.items() if dataset is not None else _files_of(text, place)
        for name, source in named:
            kind, suffix = _kind_of(name, input_format), PurePosixPath(name).suffix.lower()
            delimiter = "\t" if suffix == ".tsv" else ","
            found.setdefault(source, InputFile(source=source, name=name, kind=kind, delimiter=delimiter))
    if split is not None and not num_datasets:
        raise UserError(f"--split {split}: no input is a folder that a dataset was saved to")
    files = [_recognised(file) for file in found.values()]
    return [replace(file, index=index) for index, file in enumerate(_with_distinct_names(files))]


def _files_of(text: str, place: list[tuple[str, StoredFile]] | Folder) -> Iterator[tuple[str, StoredFile]]:
    if not isinstance(place, Folder):
        yield from place
        return
    inside = {name: file for name, file in place.files.items() if _is_data(name)}
    if not inside:
        raise UserError(f"{shown(text)}: no file to read in this folder; read are {', '.join(KINDS)}")
    yield from inside.items()


def _is_data(name: str) -> bool:
    path = PurePosixPath(name)
    return path.suffix.lower() in KINDS and not any(part.startswith((".", "_")) for part in path.parts)


def _kind_of(name: str, input_format: InputFormat) -> FileKind:
    kind = KINDS.get(PurePosixPath(name).suffix.lower())
    if input_format == "openai-batch":
        if kind not in (None, "jsonl"):
            raise UserError(f"{name}: is {kind}; --input-format openai-batch reads JSON lines")
        return "openai-batch"
    if kind is None:
        raise UserError(f"{name}: cannot tell its kind from its name; read are {', '.join(KINDS)}")
    return kind


def _recognised(file: InputFile) -> InputFile:
    """What is wrong with a whole file is told before the job starts, in one line."""
    path = file.source.path
    try:
        if file.kind == "parquet":
            with file.source.open_random() as stream:
                pq.read_metadata(stream)
        elif file.kind == "arrow":
            with file.source.open_random() as stream:
                pa.ipc.open_stream(stream)
        else:
            with file.source.open() as stream:
                return _with_line_kind(file, stream)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or str(error).splitlines()[0]}") from None
    except pa.ArrowException as error:
        format_name = "a Parquet file" if file.kind == "parquet" else "an Arrow stream, as save_to_disk writes"
        raise UserError(f"{path}: is not {format_name}: {str(error).splitlines()[0]}") from None
    return file


def _with_line_kind(file: InputFile, stream: BinaryIO) -> InputFile:
    """JSON lines are OpenAI's where the first of them is."""
    line = stream.readline(HEAD_BYTES)
    if line.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise UserError(f"{file.source.path}: is UTF-16; convert it (iconv -f UTF-16 -t UTF-8)")
    if file.kind != "jsonl":
        return file
    line = line.removeprefix(b"\xef\xbb\xbf")
    while line and not line.strip():
        line = stream.readline(HEAD_BYTES)
    if line.lstrip().startswith(b"["):
        raise UserError(f"{file.source.path}: is a JSON array; write one object a line (jq -c '.[]')")
    return replace(file, kind="openai-batch") if _is_batch_line(line) else file


def _is_batch_line(line: bytes) -> bool:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return False
    return isinstance(record, dict) and record.keys() >= BATCH_FIELDS


def _with_distinct_names(files: list[InputFile]) -> list[InputFile]:
    """Two files of one name get their paths as names, or rows of theirs would get the same ids."""
    counts: dict[str, int] = {}
    for file in files:
        counts[file.name] = counts.get(file.name, 0) + 1
    return [file if counts[file.name] == 1 else replace(file, name=file.source.path) for file in files]


def approximate_rows(file: InputFile) -> int:
    """Rows as the file's size tells them: exact for Parquet and Arrow; lines, blank ones included, for the others."""
    if file.kind in ("parquet", "arrow"):
        return file_end(file) if file.end is None else file.end
    return _count_lines(file) - (1 if file.kind == "csv" else 0)


def file_end(file: InputFile) -> int:
    """Where the whole file ends, in the units of `begin`."""
    if file.kind == "parquet":
        with file.source.open_random() as stream:
            return int(pq.read_metadata(stream).num_rows)
    return _arrow_rows(file) if file.kind == "arrow" else file.source.size_bytes


def _arrow_rows(file: InputFile) -> int:
    """A stream has no count: its batches are gone through, mapped on this host and so not read."""
    rows = 0
    try:
        with file.source.open_mapped() as stream, pa.ipc.open_stream(stream) as reader:
            for batch in reader:
                rows += batch.num_rows
    except (pa.ArrowException, OSError):
        rows += 1  # the row that says so
    return rows


def _count_lines(file: InputFile) -> int:
    lines, last, left = 0, b"\n", file_end(file) if file.end is None else file.end
    with file.source.open() as stream:
        while chunk := stream.read(min(left, 2**20)):
            lines += chunk.count(b"\n")
            last, left = chunk[-1:], left - len(chunk)
    return lines + (last != b"\n")
