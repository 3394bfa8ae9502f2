"""A task for tests that measures nothing; a worker imports this file, so it imports nothing heavy."""

from __future__ import annotations

from collections.abc import Iterator

from cluster.errors import UserError


def count_or_fail(what: str) -> Iterator[str | None]:
    """A step, then what came in; a mistake of the user's where that is "mistake"."""
    yield None
    if what == "mistake":
        raise UserError("tensor x is missing")
    yield what
