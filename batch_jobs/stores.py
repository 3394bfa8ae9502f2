"""Files on this host's disk and in object stores, found and opened by the same calls; it knows no formats."""

from __future__ import annotations

import glob
import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import BinaryIO

import pyarrow as pa
from pyarrow.fs import FileSelector, FileSystem, FileType, FSSpecHandler, PyFileSystem

from cluster.errors import UserError

URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
READ_BYTES = 2**20
"""Of one read in a store: a request there costs tens of milliseconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredFile:
    path: str
    """On this host, or inside the store."""
    store: str | None = None
    """A URI into the store; None: this host's own files."""

    @property
    def suffix(self) -> str:
        return PurePosixPath(self.path).suffix.lower()

    def open(self) -> BinaryIO:
        """For reading lines, from any byte on."""
        if self.store is None:
            return Path(self.path).open("rb")
        return io.BufferedReader(self.open_random(), READ_BYTES)  # type: ignore[arg-type, return-value]

    def open_random(self) -> pa.NativeFile:
        """For Arrow's own readers."""
        return pa.OSFile(self.path) if self.store is None else self._filesystem.open_input_file(self.path)

    def open_mapped(self) -> pa.NativeFile:
        """As above, on this host without copies and without reading what is passed over."""
        return self.open_random() if self.store or not self.size_bytes else pa.memory_map(self.path)

    @property
    def size_bytes(self) -> int:
        if self.store is None:
            return Path(self.path).stat().st_size
        return int(self._filesystem.get_file_info(self.path).size or 0)

    @property
    def state(self) -> str:
        """Another one where the file has changed: its size, and when it was written or what the store names it by."""
        if self.store is None:
            stat = Path(self.path).stat()
            return f"{stat.st_size} bytes of {datetime.fromtimestamp(stat.st_mtime, UTC).isoformat()}"
        filesystem = self._filesystem
        info = filesystem.get_file_info(self.path)
        if info.mtime is None and isinstance(filesystem, PyFileSystem):
            return f"{info.size} bytes of {filesystem.handler.fs.ukey(self.path)[:16]}"
        return f"{info.size} bytes of {info.mtime.isoformat() if info.mtime else 'unknown age'}"

    @property
    def _filesystem(self) -> FileSystem:
        assert self.store is not None, "a file of a store"
        return _filesystem_of(self.store)[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class Folder:
    """All files below a folder by their paths inside it, sorted."""

    files: dict[str, StoredFile]


Named = tuple[str, StoredFile]
"""With the name that it was found by: a link may lead to a file of another."""


def listed(text: str) -> list[Named] | Folder:
    """The file, the files that a pattern matches, or what lies below the folder. UserError where nothing is there."""
    return _listed_in_store(text) if URI.match(text) else _listed_here(text)


def _listed_here(text: str) -> list[Named] | Folder:
    path = Path(text)
    if path.is_dir():
        inside = sorted(file for file in path.rglob("*") if file.is_file())
        return Folder(files={file.relative_to(path).as_posix(): _here(file) for file in inside})
    if path.exists():
        return [(path.name, _here(path))]
    matches = sorted(match for match in glob.glob(text, recursive=True) if Path(match).is_file())
    if not matches:
        raise UserError(f"{text}: no such file, folder or pattern; give a file, a folder, or a quoted glob")
    return [(Path(match).name, _here(Path(match))) for match in matches]


def _here(path: Path) -> StoredFile:
    return StoredFile(path=str(path.resolve()))


def _listed_in_store(uri: str) -> list[Named] | Folder:
    base, pattern = _split_pattern(uri)
    filesystem, root = _filesystem_of(base)
    try:
        info = filesystem.get_file_info(root)
        if info.type == FileType.File and not pattern:
            return [(PurePosixPath(root).name, StoredFile(path=root, store=base))]
        is_flat = len(pattern) == 1 and pattern != ["**"]
        selector = FileSelector(root, recursive=not is_flat)
        found = dict(_files_in(filesystem, selector, base)) if info.type == FileType.Directory else {}
    except OSError as error:
        raise UserError(f"{shown(uri)}: cannot be read: {str(error).splitlines()[0]}") from None
    if pattern:
        found = {name: file for name, file in found.items() if _matches(name.split("/"), pattern)}
    if not found:
        raise UserError(f"{shown(uri)}: no such file, folder or pattern")
    return [(PurePosixPath(name).name, file) for name, file in found.items()] if pattern else Folder(files=found)


def _files_in(filesystem: FileSystem, selector: FileSelector, store: str) -> Iterator[Named]:
    """By their paths below the selector's."""
    for info in sorted(filesystem.get_file_info(selector), key=lambda info: info.path):
        if info.type == FileType.File:
            yield info.path.removeprefix(selector.base_dir).lstrip("/"), StoredFile(path=info.path, store=store)


def _split_pattern(uri: str) -> tuple[str, list[str]]:
    """The URI up to its first segment with a wildcard, and the segments from there on; `?` begins a query."""
    scheme, _, rest = uri.partition("://")
    path, mark, query = rest.partition("?")
    segments = path.split("/")
    at = next((at for at, segment in enumerate(segments) if re.search(r"[*\[]", segment)), len(segments))
    return f"{scheme}://{'/'.join(segments[:at])}{mark}{query}", segments[at:]


def _matches(names: Sequence[str], pattern: Sequence[str]) -> bool:
    """As glob has it: `**` is any folders, and a wildcard does not begin with a dot."""
    if not pattern:
        return not names
    if pattern[0] == "**":
        return any(_matches(names[at:], pattern[1:]) for at in range(len(names) + 1))
    if not names or (names[0].startswith(".") and not pattern[0].startswith(".")):
        return False
    return fnmatchcase(names[0], pattern[0]) and _matches(names[1:], pattern[1:])


def _filesystem_of(uri: str) -> tuple[FileSystem, str]:
    """By Arrow where it knows the scheme (file, s3, gs, abfs, ...), else by fsspec (hf, ...)."""
    try:
        return FileSystem.from_uri(uri)
    except (pa.ArrowException, OSError) as error:
        first = str(error).splitlines()[0]
    import fsspec

    try:
        filesystem, path = fsspec.url_to_fs(uri)
        return PyFileSystem(FSSpecHandler(filesystem)), path
    except (ImportError, ValueError, OSError) as error:
        raise UserError(f"{shown(uri)}: cannot be opened: {first}; {error}") from None


def shown(uri: str) -> str:
    """Without a secret that stands in it."""
    return re.sub(r":[^/:@]*@", ":...@", uri)
