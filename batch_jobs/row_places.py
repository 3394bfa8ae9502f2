"""Where rows stand in their files, and which of them are done: what a job resumes by; it reads and writes nothing."""

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A row's stretch of its file, from the end of the row before: blank lines and a header belong to the row behind.

    `begin` and `end` are bytes in files of lines, rows in Parquet files: what a reader can go to at once.
    """

    file: int
    """Of the job's input files."""
    begin: int
    end: int
    first: int
    """The number that a record at `begin` has."""
    number: int
    """The row's own."""


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Span:
    """Neighbouring rows."""

    begin: int
    end: int
    first: int
    next: int
    """The number that a record at `end` has."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gap:
    """What is still to be read of a file."""

    begin: int
    first: int
    end: int | None
    """None: to the file's own end."""


class DoneRows:
    """Spans by file: a handful each, because rows are read in order and come back nearly so."""

    def __init__(self) -> None:
        self._spans: dict[int, list[Span]] = {}

    def holds(self, file: int, begin: int) -> bool:
        """Whether the row that begins there is done."""
        spans = self._spans.get(file, [])
        at = bisect_right(spans, begin, key=lambda span: span.begin) - 1
        return at >= 0 and begin < spans[at].end

    def add(self, places: Iterable[Place]) -> None:
        for file, span in joined_spans(places):
            self.add_span(file, span)

    def add_span(self, file: int, span: Span) -> None:
        """ValueError for rows that are done already."""
        spans = self._spans.setdefault(file, [])
        at = bisect_right(spans, span.begin, key=lambda other: other.begin)
        before = spans[at - 1] if at else None
        after = spans[at] if at < len(spans) else None
        if (before is not None and before.end > span.begin) or (after is not None and after.begin < span.end):
            raise ValueError(f"rows of file {file} between {span.begin} and {span.end} are done already")
        for neighbour in (before, after):
            if neighbour is not None and (neighbour.end == span.begin or neighbour.begin == span.end):
                spans.remove(neighbour)
                span = _joined(min(neighbour, span), max(neighbour, span))
        insort(spans, span)

    def gaps(self, file: int, end: int | None) -> list[Gap]:
        """In order; `end` is where the job's rows of the file end, None where that is not known."""
        spans = self._spans.get(file, [])
        begins = [(0, 1), *((span.end, span.next) for span in spans)]
        ends: list[int | None] = [*(span.begin for span in spans), end]
        return [
            Gap(begin=begin, first=first, end=until)
            for (begin, first), until in zip(begins, ends, strict=True)
            if until is None or begin < until
        ]


def joined_spans(places: Iterable[Place]) -> Iterator[tuple[int, Span]]:
    """Rows in any order as few spans, by file and place."""
    ordered = sorted(places, key=lambda place: (place.file, place.begin))
    cuts = [0, *(at for at, (one, other) in enumerate(pairwise(ordered), 1) if not _adjoin(one, other)), len(ordered)]
    for begin, end in pairwise(cuts):
        if begin < end:
            yield ordered[begin].file, _span_of(ordered[begin:end])


def _adjoin(one: Place, other: Place) -> bool:
    return one.file == other.file and one.end == other.begin


def _span_of(rows: Sequence[Place]) -> Span:
    first, last = rows[0], rows[-1]
    return Span(begin=first.begin, end=last.end, first=first.first, next=last.number + 1)


def _joined(one: Span, other: Span) -> Span:
    return Span(begin=one.begin, end=other.end, first=one.first, next=other.next)
