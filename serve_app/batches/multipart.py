"""A form of multipart/form-data (RFC 7578) as it arrives, in pieces of any size; it knows no files and no HTTP server.

Starlette's own parser needs another package and spools a file of any size before a limit can be asked for.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from email.message import Message
from email.parser import HeaderParser
from typing import Literal

MAX_HEADER_BYTES = 8 * 2**10
MAX_BOUNDARY_LETTERS = 70
"""RFC 2046, 5.1.1."""
END = b"\r\n"


class FormError(ValueError):
    """What a client sent is not such a form."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PartBegin:
    name: str
    filename: str | None
    """None of a plain field."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PartData:
    """A piece of the part that began last."""

    data: bytes


Event = PartBegin | PartData


def boundary_of(content_type: str) -> bytes:
    """FormError where the header is of something else."""
    message = Message()
    message["content-type"] = content_type
    boundary = message.get_param("boundary")
    if message.get_content_type() != "multipart/form-data" or not isinstance(boundary, str):
        raise FormError("send the file as multipart/form-data, as the openai client does")
    if not 1 <= len(boundary) <= MAX_BOUNDARY_LETTERS or not boundary.isascii():
        raise FormError(f"the form's boundary is none of 1 to {MAX_BOUNDARY_LETTERS} ASCII letters")
    return boundary.encode()


@dataclass(slots=True, kw_only=True)
class FormParser:
    """Bytes in, events out; between calls it holds less than a header or a delimiter."""

    boundary: bytes
    _state: Literal["before", "delimiter", "header", "data", "after"] = field(default="before", init=False)
    _held: bytes = field(default=END, init=False)
    """The line end that a delimiter begins with, which the first one of a form lacks."""

    def feed(self, chunk: bytes) -> Iterator[Event]:
        """FormError where the form is malformed."""
        self._held += chunk
        while self._state != "after":
            state, size = self._state, len(self._held)
            yield from self._step()
            if self._state == state and len(self._held) == size:
                return  # nothing more to be had from what is here
        self._held = b""

    def end(self) -> None:
        """FormError where the last delimiter has not come."""
        if self._state != "after":
            raise FormError("the form ends before its last delimiter")

    def _step(self) -> Iterator[Event]:
        if self._state in ("before", "data"):
            yield from self._until_delimiter()
        elif self._state == "delimiter":
            self._after_delimiter()
        else:
            yield from self._header()

    def _until_delimiter(self) -> Iterator[Event]:
        delimiter = END + b"--" + self.boundary
        at = self._held.find(delimiter)
        # Without one, all but what may be the beginning of one.
        taken = at if at >= 0 else max(0, len(self._held) - len(delimiter) + 1)
        data = self._held[:taken]
        if at >= 0:
            taken += len(delimiter)
        self._held = self._held[taken:]
        if data and self._state == "data":
            yield PartData(data=data)
        if at >= 0:
            self._state = "delimiter"

    def _after_delimiter(self) -> None:
        if self._held.startswith(b"--"):
            self._state = "after"
            return
        line, found, rest = self._held.partition(END)
        if found and not line.strip(b" \t"):
            self._held, self._state = rest, "header"
        elif found or len(self._held) > MAX_HEADER_BYTES:
            raise FormError("a delimiter of the form is followed by something else than a line end")

    def _header(self) -> Iterator[Event]:
        lines, found, rest = self._held.partition(2 * END)
        if len(lines) > MAX_HEADER_BYTES:
            raise FormError(f"a part's header is longer than {MAX_HEADER_BYTES} bytes")
        if not found:
            return
        self._held, self._state = rest, "data"
        header = HeaderParser().parsestr(lines.decode("utf-8", "replace"))
        name = header.get_param("name", header="content-disposition")
        if header.get_content_disposition() != "form-data" or not isinstance(name, str):
            raise FormError("a part of the form has no name")
        yield PartBegin(name=name, filename=header.get_filename())
