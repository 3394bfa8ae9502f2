"""A prompt made of a row's columns, such as "Question: {question}"; it knows no rows' files and no tokens."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from string import Formatter
from typing import Any

from cluster.errors import UserError

ESCAPES = {r"\n": "\n", r"\t": "\t", r"\\": "\\"}
"""What a shell leaves in double quotes; a template in a file needs none of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptTemplate:
    """Text with columns in braces, by name and nothing more: what stands there is no expression. `{{` is a brace."""

    text: str

    def __post_init__(self) -> None:
        try:
            names = [name for _, name in self._parts() if name is not None]
        except ValueError as error:
            raise UserError(f"--template: {error}; a brace that is meant as one is doubled") from None
        if not names:
            raise UserError("--template: names no column; write one in braces, such as {question}")

    @classmethod
    def of_option(cls, text: str) -> PromptTemplate:
        r"""As on the command line: @FILE without the line end at its end, or the text with \n, \t and \\ in it."""
        if not text.startswith("@"):
            return cls(text=re.sub(r"\\[nt\\]", lambda match: ESCAPES[match.group()], text))
        try:
            return cls(text=Path(text[1:]).read_text(encoding="utf-8").removesuffix("\n"))
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"--template {text}: cannot be read: {error}") from None

    def fill(self, record: Mapping[str, Any]) -> str:
        """ValueError names the column that has no value."""
        return "".join(literal + self._value(record, name) for literal, name in self._parts())

    def _parts(self) -> Iterator[tuple[str, str | None]]:
        """Literal text and the column behind it, None at the end."""
        for literal, name, spec, conversion in Formatter().parse(self.text):
            if name is not None and (not name or spec or conversion):
                asked = f"{{{name}{'!' + conversion if conversion else ''}{':' + spec if spec else ''}}}"
                raise ValueError(f"{asked} is no column's name alone")
            yield literal, name

    @staticmethod
    def _value(record: Mapping[str, Any], name: str | None) -> str:
        if name is None:
            return ""
        value = record.get(name)
        if value is None:
            raise ValueError(f"no value in column {name!r} of the template; {columns_of(record)}")
        if isinstance(value, bool | list | dict):
            return json.dumps(value, ensure_ascii=False, default=str)
        return str(value)


def columns_of(record: Mapping[str, Any]) -> str:
    """In words, for a message."""
    names = ", ".join(str(name) for name in islice(record, 8))
    return f"the row has: {names.encode('utf-8', 'replace').decode()}" if names else "the row has no columns"
