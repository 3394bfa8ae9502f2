"""A file that a client sends, streamed to the disk under a limit; it knows no caller and no route."""

from __future__ import annotations

import asyncio
import errno
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import ClientDisconnect, Request

from serve_app.batches.bodies import FileForm, parsed
from serve_app.batches.file_store import FileRecord, FileStore, StagedFile
from serve_app.batches.multipart import Event, FormError, FormParser, PartBegin, boundary_of
from serve_app.errors import ApiError, bad_parameter

WRITTEN_BYTES = 2**20
"""At once: a write from the event loop would hold up every answer's tokens, one a chunk costs a change of threads."""
MAX_FIELD_BYTES = 4096
MAX_FIELDS = 16
MAX_FILENAME_LETTERS = 255
FORM_BYTES = 2**20
"""For a form's fields, headers and delimiters beside the file."""
DISCARDED_BYTES = 64 * 2**20
"""Read and thrown away of what is too large: a client still sending when the connection closes sees no answer."""
NESTED = re.compile(r"(\w+)\[(\w+)\]")


@dataclass(slots=True, kw_only=True)
class FormReader:
    """Takes events in; the fields are here, the file's content goes to the staged one."""

    staged: StagedFile
    limit_bytes: int
    filename: str | None = field(default=None, init=False)
    fields: dict[str, bytearray] = field(default_factory=dict, init=False)
    pending: bytearray = field(default_factory=bytearray, init=False)
    """Of the file, not written yet."""
    _field: str | None = field(default=None, init=False)
    """Whose content comes; None: the file's."""

    def take(self, event: Event) -> None:
        """FormError, or ApiError 413 where the file is too large."""
        if isinstance(event, PartBegin):
            self._begin(event)
        elif self._field is None:
            self.pending += event.data
            if self.staged.size_bytes + len(self.pending) > self.limit_bytes:
                raise _too_large(self.limit_bytes)
        else:
            content = self.fields[self._field]
            content += event.data
            if len(content) > MAX_FIELD_BYTES:
                raise FormError(f"the field {self._field!r} is longer than {MAX_FIELD_BYTES} bytes")

    def write(self) -> None:
        self.staged.write(bytes(self.pending))
        self.pending.clear()

    def nested_fields(self) -> dict[str, Any]:
        """`expires_after[seconds]`, as forms spell it, as {"expires_after": {"seconds": ...}}."""
        found: dict[str, Any] = {}
        for name, content in self.fields.items():
            text = content.decode("utf-8", "replace")
            if nested := NESTED.fullmatch(name):
                inner = found.setdefault(nested[1], {})
                if isinstance(inner, dict):
                    inner[nested[2]] = text
            else:
                found[name] = text
        return found

    def _begin(self, part: PartBegin) -> None:
        if part.name == "file":
            if self.filename is not None:
                raise FormError("the form has two files; send one")
            self.filename, self._field = (part.filename or "upload")[:MAX_FILENAME_LETTERS], None
            return
        if part.name in self.fields or len(self.fields) == MAX_FIELDS:
            raise FormError(f"the form has the field {part.name[:60]!r} twice, or more than {MAX_FIELDS}")
        self.fields[part.name], self._field = bytearray(), part.name


def _too_large(limit_bytes: int) -> ApiError:
    message = f"The file is larger than {limit_bytes} bytes (batches.max_file_bytes, or what is left of this key's"
    return ApiError(413, f"{message} batches.max_stored_bytes)", param="file", code="file_too_large")


async def receive_file(request: Request, store: FileStore, limit_bytes: int, default_expiry_s: int) -> FileRecord:
    """POST /v1/files. Nothing stays of a file that is not taken. ApiError says why it was not."""
    try:
        with store.staged() as staged:
            reader = FormReader(staged=staged, limit_bytes=limit_bytes)
            await _read(request, reader)
            form = parsed(FileForm, reader.nested_fields())
            if reader.filename is None:
                raise bad_parameter("file", "Missing required parameter: 'file'", "missing_required_parameter")
            expiry_s = form.expires_after.seconds if form.expires_after is not None else default_expiry_s
            return await asyncio.to_thread(store.keep, staged, reader.filename, form.purpose, expiry_s)
    except FormError as error:
        raise bad_parameter(None, f"The body is no form with a file: {error}") from None
    except ClientDisconnect:
        raise ApiError(400, "The connection closed before the file was complete") from None
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise ApiError(507, "No space is left for the file", kind="server_error", code="disk_full") from None


async def _read(request: Request, reader: FormReader) -> None:
    parser = FormParser(boundary=boundary_of(request.headers.get("content-type", "")))
    chunks = request.stream()
    try:
        declared = request.headers.get("content-length", "")
        if declared.isdigit() and int(declared) > reader.limit_bytes + FORM_BYTES:
            raise _too_large(reader.limit_bytes)
        async for chunk in chunks:
            for event in parser.feed(chunk):
                reader.take(event)
            if len(reader.pending) >= WRITTEN_BYTES:
                await asyncio.to_thread(reader.write)
        parser.end()
    except (ApiError, FormError):
        await discard(chunks)
        raise
    await asyncio.to_thread(reader.write)


async def discard(chunks: AsyncIterator[bytes]) -> None:
    """What is still coming of a body that was refused."""
    left = DISCARDED_BYTES
    async for chunk in chunks:
        left -= len(chunk)
        if left < 0:
            return
