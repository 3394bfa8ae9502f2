"""Done rows against a plain set of rows."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batch_jobs.row_places import DoneRows, Gap, Place, Span, joined_spans

WIDTH = 10


def place(row: int, file: int = 0) -> Place:
    return Place(file=file, begin=row * WIDTH, end=(row + 1) * WIDTH, first=row + 1, number=row + 1)


def rows_in(gap: Gap, num_rows: int) -> range:
    assert gap.begin % WIDTH == 0
    assert gap.first == gap.begin // WIDTH + 1
    return range(gap.begin // WIDTH, num_rows if gap.end is None else gap.end // WIDTH)


@given(st.permutations(range(24)), st.integers(0, 24), st.integers(1, 7), st.booleans())
def test_what_is_done_and_what_is_left_make_the_file(order: list[int], num_done: int, size: int, ends: bool) -> None:
    done = DoneRows()
    for at in range(0, num_done, size):
        done.add(place(row, file=3) for row in order[at : min(at + size, num_done)])
    left = [row for gap in done.gaps(3, 24 * WIDTH if ends else None) for row in rows_in(gap, 24)]
    assert left == sorted(order[num_done:])
    assert all(done.holds(3, row * WIDTH) == (row in order[:num_done]) for row in range(24))
    assert not done.holds(2, 0)


def test_rows_are_done_once() -> None:
    done = DoneRows()
    done.add([place(1), place(2)])
    with pytest.raises(ValueError, match="done already"):
        done.add([place(2), place(3)])


def test_neighbours_are_one_span() -> None:
    spans = list(joined_spans([place(4), place(2), place(3), place(9), place(0, file=1)]))
    assert spans == [
        (0, Span(begin=20, end=50, first=3, next=6)),
        (0, Span(begin=90, end=100, first=10, next=11)),
        (1, Span(begin=0, end=10, first=1, next=2)),
    ]
