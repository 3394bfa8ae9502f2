"""Which files a job reads, their kinds and about how many rows they hold; it reads no rows."""

from __future__ import annotations

import glob
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq

from cluster.errors import UserError

FileKind = Literal["jsonl", "csv", "parquet", "text"]

KINDS: dict[str, FileKind] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".txt": "text",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class InputFile:
    """A file of the job, or what of it is to be read; `name` is what ids made from a row's position begin with."""

    path: Path
    name: str
    kind: FileKind
    index: int = 0
    """Among the job's files."""
    begin: int = 0
    """Where to begin: a byte where records are lines, a row in Parquet, as in row_places.Place."""
    first: int = 1
    """The number of the record there."""
    end: int | None = None
    """Where to end; None: at the file's own end."""

    @property
    def delimiter(self) -> str:
        return "\t" if self.path.suffix.lower() == ".tsv" else ","


def find_input_files(inputs: Iterable[str]) -> list[InputFile]:
    """Files, folders (searched in depth) and glob patterns as files in a stable order, each file once."""
    found: dict[Path, InputFile] = {}
    for text in inputs:
        for path, name in _expand(text):
            found.setdefault(path.resolve(), InputFile(path=path.resolve(), name=name, kind=_kind_of(path)))
    files = list(found.values())
    for file in files:
        _check_readable(file)
    return [replace(file, index=index) for index, file in enumerate(_with_distinct_names(files))]


def _expand(text: str) -> Iterator[tuple[Path, str]]:
    path = Path(text)
    if path.is_dir():
        inside = sorted(file for file in path.rglob("*") if file.suffix.lower() in KINDS and _is_data(file, path))
        if not inside:
            raise UserError(f"{text}: no file to read in this folder; read are {', '.join(KINDS)}")
        yield from ((file, file.relative_to(path).as_posix()) for file in inside)
    elif path.exists():
        yield path, path.name
    else:
        matches = sorted(match for match in glob.glob(text, recursive=True) if Path(match).is_file())
        if not matches:
            raise UserError(f"{text}: no such file, folder or pattern; give a file, a folder, or a quoted glob")
        yield from ((Path(match), Path(match).name) for match in matches)


def _is_data(file: Path, folder: Path) -> bool:
    hidden = any(part.startswith((".", "_")) for part in file.relative_to(folder).parts)
    return file.is_file() and not hidden


def _kind_of(path: Path) -> FileKind:
    kind = KINDS.get(path.suffix.lower())
    if kind is None:
        raise UserError(f"{path}: cannot tell its kind from its name; read are {', '.join(KINDS)}")
    return kind


def _check_readable(file: InputFile) -> None:
    """What is wrong with a whole file is told before the job starts, in one line."""
    try:
        if file.kind == "parquet":
            pq.read_metadata(file.path)
        else:
            with file.path.open("rb") as stream:
                head = stream.read(4096)
            if file.kind == "jsonl" and head.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"["):
                raise UserError(f"{file.path}: is a JSON array; write one object a line (jq -c '.[]')")
            if head.startswith((b"\xff\xfe", b"\xfe\xff")):
                raise UserError(f"{file.path}: is UTF-16; convert it (iconv -f UTF-16 -t UTF-8)")
    except OSError as error:
        raise UserError(f"{file.path}: cannot be read: {error.strerror or error}") from None
    except pa.ArrowException as error:
        raise UserError(f"{file.path}: is not a Parquet file: {str(error).splitlines()[0]}") from None


def _with_distinct_names(files: list[InputFile]) -> list[InputFile]:
    """Two files of one name get their paths as names, or rows of theirs would get the same ids."""
    counts: dict[str, int] = {}
    for file in files:
        counts[file.name] = counts.get(file.name, 0) + 1
    return [file if counts[file.name] == 1 else replace(file, name=file.path.as_posix()) for file in files]


def approximate_rows(file: InputFile) -> int:
    """Rows as the file's size tells them: exact for Parquet; lines, blank ones included, for the others."""
    if file.kind == "parquet":
        return file_end(file) if file.end is None else file.end
    return _count_lines(file) - (1 if file.kind == "csv" else 0)


def file_end(file: InputFile) -> int:
    """Where the whole file ends, in the units of `begin`."""
    return int(pq.read_metadata(file.path).num_rows) if file.kind == "parquet" else file.path.stat().st_size


def _count_lines(file: InputFile) -> int:
    lines, last, left = 0, b"\n", file_end(file) if file.end is None else file.end
    with file.path.open("rb") as stream:
        while chunk := stream.read(min(left, 2**20)):
            lines += chunk.count(b"\n")
            last, left = chunk[-1:], left - len(chunk)
    return lines + (last != b"\n")
