"""BlockPool: sharing, eviction order and, over random lives of sequences, that no block is lost or given twice."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from engine.kv_cache import BlockPool, extend_block_hashes, hash_block


def hashes_of(token_ids: list[int], block_size: int) -> list[bytes]:
    hashes: list[bytes] = []
    extend_block_hashes(hashes, token_ids, len(token_ids) // block_size, block_size)
    return hashes


def test_a_hash_names_the_whole_prefix() -> None:
    same_block = [1, 2, 3, 4]
    assert hashes_of([9, 9, 9, 9, *same_block], 4)[1] != hashes_of([8, 8, 8, 8, *same_block], 4)[1]
    assert hash_block(b"", [1, 2]) != hash_block(b"", [2, 1])
    assert hashes_of(list(range(11)), 4) == hashes_of([*range(8), 99], 4)


def test_hashes_grow_without_being_worked_out_again() -> None:
    hashes = hashes_of(list(range(8)), 4)
    first = hashes[0]
    extend_block_hashes(hashes, list(range(16)), 4, 4)
    assert hashes[0] is first
    assert hashes == hashes_of(list(range(16)), 4)


def test_a_released_block_is_given_again_with_its_contents() -> None:
    pool = BlockPool(4, 4)
    hashes = hashes_of(list(range(8)), 4)
    blocks = pool.allocate(2)
    for block, block_hash in zip(blocks, hashes, strict=True):
        pool.publish(block, block_hash)
    pool.release(blocks)
    assert (pool.num_free, pool.num_cached, pool.num_used) == (4, 2, 0)
    assert pool.lookup(hashes) == blocks
    pool.share(blocks)
    assert (pool.num_free, pool.num_cached, pool.num_used) == (2, 0, 2)


def test_lookup_ends_at_the_first_unknown_block() -> None:
    pool = BlockPool(4, 4)
    hashes = hashes_of(list(range(12)), 4)
    blocks = pool.allocate(3)
    pool.publish(blocks[0], hashes[0])
    pool.publish(blocks[2], hashes[2])
    assert pool.lookup(hashes) == blocks[:1]


def test_empty_blocks_go_before_cached_ones_and_the_end_of_a_prefix_before_its_beginning() -> None:
    pool = BlockPool(4, 4)
    hashes = hashes_of(list(range(12)), 4)
    blocks = pool.allocate(3)
    for block, block_hash in zip(blocks, hashes, strict=True):
        pool.publish(block, block_hash)
    pool.release(blocks)
    pool.allocate(1)
    assert pool.lookup(hashes) == blocks, "the empty fourth block was there to take"
    pool.allocate(1)
    assert pool.lookup(hashes) == blocks[:2]


def test_the_least_recently_used_prefix_is_evicted() -> None:
    pool = BlockPool(2, 4)
    old, recent = hashes_of([1] * 4, 4), hashes_of([2] * 4, 4)
    for block_hash in (old[0], recent[0]):
        block = pool.allocate(1)
        pool.publish(block[0], block_hash)
        pool.release(block)
    again = pool.lookup(old)
    pool.share(again)
    pool.release(again)
    pool.allocate(1)
    assert pool.lookup(old)
    assert not pool.lookup(recent)


def test_of_two_blocks_with_the_same_contents_one_is_known() -> None:
    pool = BlockPool(2, 4)
    (block_hash,) = hashes_of([1] * 4, 4)
    first, second = pool.allocate(2)
    pool.publish(first, block_hash)
    pool.publish(second, block_hash)
    pool.release([first, second])
    assert pool.num_cached == 1
    assert pool.lookup([block_hash]) == [first]


def test_forget_empties_what_nobody_holds() -> None:
    pool = BlockPool(3, 4)
    hashes = hashes_of(list(range(8)), 4)
    blocks = pool.allocate(2)
    for block, block_hash in zip(blocks, hashes, strict=True):
        pool.publish(block, block_hash)
    pool.release(blocks[1:])
    pool.forget()
    assert pool.num_cached == 0
    assert pool.lookup(hashes) == blocks[:1]


def test_misuse_fails() -> None:
    pool = BlockPool(1, 4)
    with pytest.raises(AssertionError):
        pool.allocate(2)
    blocks = pool.allocate(1)
    with pytest.raises(AssertionError):
        pool.share(blocks)
    pool.release(blocks)
    with pytest.raises(AssertionError):
        pool.release(blocks)


class PoolLife(RuleBasedStateMachine):
    """Sequences over a two-letter alphabet, so that prefixes meet often, come, grow and go."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(7, 2)
        self.contents: dict[int, tuple[int, ...]] = {}
        self.tables: list[list[int]] = []

    @rule(token_ids=st.lists(st.integers(0, 1), min_size=2, max_size=10))
    def come(self, token_ids: list[int]) -> None:
        hashes = hashes_of(token_ids, 2)
        cached = self.pool.lookup(hashes)
        for index, block in enumerate(cached):
            assert self.contents[block] == tuple(token_ids[: 2 * index + 2]), "the cache gave another prefix's block"
        new = len(hashes) - len(cached)
        if new > self.pool.num_free - self.pool.num_idle(cached):
            return
        self.pool.share(cached)
        fresh = self.pool.allocate(new)
        held = {block for table in self.tables for block in table}
        assert held.isdisjoint(fresh), "a held block was given out"
        for index, block in enumerate(fresh, len(cached)):
            self.contents[block] = tuple(token_ids[: 2 * index + 2])
            self.pool.publish(block, hashes[index])
        self.tables.append(cached + fresh)

    @precondition(lambda self: self.tables)
    @rule(data=st.data())
    def go(self, data: st.DataObject) -> None:
        self.pool.release(self.tables.pop(data.draw(st.integers(0, len(self.tables) - 1))))

    @rule()
    def forget(self) -> None:
        self.pool.forget()

    @invariant()
    def blocks_add_up(self) -> None:
        held = {block for table in self.tables for block in table}
        assert self.pool.num_used == len(held)
        assert self.pool.num_used + self.pool.num_free == self.pool.num_blocks
        assert 0 <= self.pool.num_cached <= self.pool.num_free


TestPoolLife = PoolLife.TestCase
TestPoolLife.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
