"""Ids that nobody guesses, in the order of their making, and lists cut into pages by them."""

from __future__ import annotations

import time

import pytest

from serve_app.batches.ids import BATCH_PREFIX, FILE_PREFIX, Order, Page, is_id, list_object, new_id


def test_later_ids_sort_behind_earlier_ones_and_none_repeats() -> None:
    ids = []
    for _ in range(5):
        ids.append(new_id(FILE_PREFIX))
        time.sleep(0.002)
    assert ids == sorted(set(ids))
    assert len({new_id(FILE_PREFIX)[-24:] for _ in range(100)}) == 100
    assert all(is_id(name, FILE_PREFIX) for name in ids)


@pytest.mark.parametrize("text", ["file-", "file-../../etc", "file-" + "a" * 34 + "/", "file-" + "a" * 35 + "\n"])
def test_what_is_no_id_is_none(text: str) -> None:
    assert not is_id(text, FILE_PREFIX)


def test_an_id_of_another_kind_is_none() -> None:
    assert not is_id(new_id(BATCH_PREFIX), FILE_PREFIX)


@pytest.mark.parametrize(("order", "wanted"), [("desc", ["e", "c", "b", "a"]), ("asc", ["a", "b", "c", "e"])])
def test_pages_hold_each_item_once(order: Order, wanted: list[str]) -> None:
    def read(name: str) -> str | None:
        return None if name == "d" else name

    seen: list[str] = []
    has_more = True
    while has_more:
        page = Page(limit=2, after=seen[-1] if seen else None, order=order)
        found, has_more = page.of(["b", "a", "c", "e", "d"], read)
        seen += found
    assert seen == wanted


def test_a_cursor_may_be_gone() -> None:
    assert Page(limit=2, after="d").of(["a", "e"], str) == (["a"], False)


def test_an_empty_list_has_no_ends() -> None:
    assert list_object([], False) == {
        "object": "list",
        "data": [],
        "first_id": None,
        "last_id": None,
        "has_more": False,
    }
