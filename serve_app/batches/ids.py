"""Ids of files and batches, and pages of them: unguessable, in the order of their making; it knows no disk."""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

FILE_PREFIX, BATCH_PREFIX = "file-", "batch_"
TIME_DIGITS, RANDOM_BYTES = 11, 12
"""Milliseconds since 1970 in hexadecimal (until the year 2527), then 96 random bits."""
ID = re.compile(rf"({FILE_PREFIX}|{BATCH_PREFIX})[0-9a-f]{{{TIME_DIGITS + 2 * RANDOM_BYTES}}}")

T = TypeVar("T")
Order = Literal["asc", "desc"]


def new_id(prefix: str) -> str:
    """Later ones sort behind earlier ones."""
    return f"{prefix}{time.time_ns() // 10**6:0{TIME_DIGITS}x}{secrets.token_hex(RANDOM_BYTES)}"


def is_id(text: str, prefix: str) -> bool:
    """Only what passes may become a part of a path."""
    return text.startswith(prefix) and ID.fullmatch(text) is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """What a client asks for of a list."""

    limit: int
    after: str | None = None
    """The id that the page before ended with; it need not be there any more."""
    order: Order = "desc"

    def of(self, ids: Iterable[str], read: Callable[[str], T | None]) -> tuple[list[T], bool]:
        """The page's items, and whether more follow; what `read` gives None for is left out."""
        found: list[T] = []
        for name in sorted(ids, reverse=self.order == "desc"):
            if self.after is not None and (name >= self.after if self.order == "desc" else name <= self.after):
                continue
            if (item := read(name)) is None:
                continue
            if len(found) == self.limit:
                return found, True
            found.append(item)
        return found, False


def list_object(data: list[dict[str, Any]], has_more: bool) -> dict[str, Any]:
    """OpenAI's list, whose last id is the cursor for the next page."""
    first, last = (data[0]["id"], data[-1]["id"]) if data else (None, None)
    return {"object": "list", "data": data, "first_id": first, "last_id": last, "has_more": has_more}
