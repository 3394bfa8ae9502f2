"""Prefixes by their hashes: equal as far as the tokens are, and forgotten from their ends when a cache is full."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.prefix_hash import PREFIX_BLOCK_TOKENS, prefix_hashes
from cluster.prefix_index import PrefixIndex


@settings(max_examples=60, deadline=None)
@given(
    shared=st.integers(0, 300),
    first=st.lists(st.integers(0, 2**32 - 1), max_size=200),
    second=st.lists(st.integers(0, 2**32 - 1), max_size=200),
)
def test_hashes_are_equal_as_far_as_whole_blocks_of_tokens_are(
    shared: int, first: list[int], second: list[int]
) -> None:
    prompts = [[*range(shared), *rest] for rest in (first, second)]
    hashes = [prefix_hashes(prompt) for prompt in prompts]
    assert [len(each) for each in hashes] == [len(prompt) // PREFIX_BLOCK_TOKENS for prompt in prompts]
    for index, pair in enumerate(zip(*hashes, strict=False), 1):
        end = index * PREFIX_BLOCK_TOKENS
        assert (pair[0] == pair[1]) == (prompts[0][:end] == prompts[1][:end])


def test_a_block_in_another_place_is_another_prefix() -> None:
    block = [7] * PREFIX_BLOCK_TOKENS
    assert len(set(prefix_hashes(block * 4))) == 4


def test_what_is_no_token_is_refused() -> None:
    with pytest.raises(ValueError, match="32 bits"):
        prefix_hashes([1, -1])


def test_the_longest_prefix_of_each_replica_longest_first() -> None:
    index = PrefixIndex()
    index.dispatched("a", (1, 2, 3), 100)
    index.dispatched("b", (1, 2, 8, 9), 100)
    index.dispatched("c", (7, 17), 100)
    assert list(index.lengths((1, 2, 8, 5)).items()) == [("b", 3), ("a", 2)]
    assert index.lengths((5, 2)) == index.lengths(()) == {}


def test_a_removed_replica_is_forgotten_and_leaves_nothing() -> None:
    index = PrefixIndex()
    index.dispatched("a", (1, 2), 100)
    index.dispatched("b", (1,), 100)
    index.forget("a")
    assert index.lengths((1, 2)) == {"b": 1}
    index.forget("b")
    index.forget("never seen")
    assert not index._holders
    assert not index._of_replica


def test_the_least_recently_used_is_forgotten_from_its_end() -> None:
    index = PrefixIndex()
    index.dispatched("a", (1, 2, 3), 5)
    index.dispatched("a", (11, 12), 5)
    index.dispatched("a", (1, 2), 5)
    index.dispatched("a", (21, 22), 5)
    assert index.lengths((1, 2, 3)) == {"a": 2}
    assert index.lengths((11, 12)) == {"a": 1}
    index.dispatched("a", tuple(range(31, 40)), 5)
    assert index.lengths(tuple(range(31, 40))) == {"a": 5}, "no more than its cache holds"


@settings(max_examples=80, deadline=None)
@given(
    events=st.lists(
        st.tuples(
            st.sampled_from("abc"),
            st.integers(0, 3),
            st.integers(1, 6),
            st.booleans(),
        ),
        max_size=40,
    ),
    most=st.integers(1, 9),
)
def test_it_holds_no_more_than_a_cache_and_never_an_end_without_its_beginning(
    events: list[tuple[str, int, int, bool]], most: int
) -> None:
    index = PrefixIndex()
    for replica_id, conversation, length, is_lost in events:
        prefix = (0, *(10 * conversation + step for step in range(1, length)))
        if is_lost:
            index.forget(replica_id)
        else:
            index.dispatched(replica_id, prefix, most)
            assert index.lengths(prefix)[replica_id] == min(most, length)
    for replica_id, known in index._of_replica.items():
        assert len(known) <= most
        for name in known:
            assert name == 0 or (0 if name % 10 == 1 else name - 1) in known
            assert replica_id in index._holders[name]
    assert sum(map(len, index._holders.values())) == sum(map(len, index._of_replica.values()))
