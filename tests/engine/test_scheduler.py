"""Scheduler: budget, order, preemption and progress, driven to the end with a runner that proves the block tables."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.request import GenerationRequest, SamplingParams
from engine.kv_cache import BlockPool
from engine.scheduler import Scheduler
from engine.sequence import ScheduledChunk, Sequence
from tests.engine.paged_hash_runner import PagedHashRunner, continuation

BLOCK_SIZE = 4


@dataclass
class Loop:
    """A scheduler and a runner, and what every sequence has generated."""

    num_blocks: int = 32
    token_budget: int = 16
    max_sequences: int = 8
    prefix_caching: bool = True
    finished: list[Sequence] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.pool = BlockPool(self.num_blocks, BLOCK_SIZE)
        self.runner = PagedHashRunner(self.num_blocks, BLOCK_SIZE)
        self.scheduler = Scheduler(
            self.pool,
            token_budget=self.token_budget,
            max_sequences=self.max_sequences,
            prefix_caching=self.prefix_caching,
        )
        self.arrivals = 0

    def add(
        self, prompt: list[int], max_tokens: int, priority: int = 0, *, arrived_s: float = 0.0, **terms: Any
    ) -> Sequence:
        """`terms`: objective and deadline_s of the request."""
        request = GenerationRequest(
            request_id=str(self.arrivals),
            prompt_token_ids=prompt,
            sampling=SamplingParams(max_tokens=max_tokens),
            priority=priority,
            **terms,
        )
        sequence = Sequence(
            request=request,
            token_ids=list(prompt),
            num_prompt_tokens=len(prompt),
            seed=0,
            arrival=self.arrivals,
            arrived_s=arrived_s,
        )
        self.arrivals += 1
        self.scheduler.add(sequence)
        return sequence

    def step(self) -> list[ScheduledChunk]:
        chunks = self.scheduler.schedule()
        assert sum(chunk.num_tokens for chunk in chunks) <= self.token_budget
        assert len(self.scheduler.running) <= self.max_sequences
        for sequence in {chunk.sequence for chunk in chunks}:
            assert len(sequence.block_table) == self.pool.blocks_for(len(sequence.token_ids))
        for chunk, result in zip(chunks, self.runner.run(chunks), strict=True):
            self.scheduler.advance(chunk)
            if result.token_id is None:
                self.scheduler.publish(chunk)
            else:
                chunk.sequence.token_ids.append(result.token_id)
                chunk.sequence.num_pending_tokens -= 1
                self.scheduler.publish(chunk)
                if chunk.sequence.num_output_tokens == chunk.sequence.request.sampling.max_tokens:
                    self.scheduler.remove(chunk.sequence)
                    self.finished.append(chunk.sequence)
        held = {block for sequence in self.scheduler.running for block in sequence.block_table}
        assert self.pool.num_used == len(held)
        return chunks

    def run(self, max_steps: int = 2000) -> None:
        for _ in range(max_steps):
            if not self.scheduler.waiting and not self.scheduler.running:
                assert self.pool.num_used == 0
                return
            assert self.step(), "work, and nothing scheduled"
        raise AssertionError(f"not done after {max_steps} steps")


def output(sequence: Sequence) -> list[int]:
    return sequence.token_ids[sequence.num_prompt_tokens :]


def expected(sequence: Sequence) -> list[int]:
    return continuation(sequence.request.prompt_token_ids, sequence.request.sampling.max_tokens)


def test_a_long_prompt_is_computed_in_chunks_of_the_budget() -> None:
    loop = Loop(token_budget=5)
    sequence = loop.add(list(range(1, 14)), 3)
    loop.run()
    assert loop.runner.steps == [[5], [5], [3], [1], [1]]
    assert output(sequence) == expected(sequence)


def test_decodes_go_first_and_prefill_takes_the_rest_of_the_budget() -> None:
    loop = Loop(token_budget=6)
    loop.add([1, 2, 3], 8)
    loop.step()
    loop.add(list(range(10, 20)), 2)
    assert [chunk.num_tokens for chunk in loop.step()] == [1, 5]


def test_the_queue_goes_by_priority_then_arrival() -> None:
    loop = Loop(max_sequences=1)
    late, urgent, early = loop.add([1], 1, priority=2), loop.add([2], 1, priority=0), loop.add([3], 1, priority=1)
    loop.add([4], 1, priority=1)
    loop.run()
    assert [sequence.arrival for sequence in loop.finished] == [urgent.arrival, early.arrival, 3, late.arrival]


def test_a_prompt_seen_before_is_taken_from_the_cache_but_for_its_last_block() -> None:
    loop = Loop()
    prompt = list(range(1, 13))
    loop.add(prompt, 2)
    loop.run()
    again = loop.add(prompt, 2)
    loop.run()
    assert again.num_cached_tokens == 8, "12 tokens are 3 full blocks; the last is computed again for its logits"
    assert output(again) == expected(again)


def test_blocks_filled_by_decode_are_cached_too() -> None:
    loop = Loop()
    first = loop.add([1, 2, 3], 14)
    loop.run()
    # The last token's K and V were never computed: 16 of the 17 tokens are in the cache.
    second = loop.add([*first.token_ids, 5], 2)
    loop.run()
    assert second.num_cached_tokens == 16
    assert output(second) == expected(second)


def test_without_prefix_caching_nothing_is_shared() -> None:
    loop = Loop(prefix_caching=False)
    for _ in range(2):
        loop.add(list(range(1, 13)), 2)
        loop.run()
    assert [sequence.num_cached_tokens for sequence in loop.finished] == [0, 0]
    assert loop.pool.num_cached == 0


def test_the_largest_rank_is_preempted_and_keeps_its_output() -> None:
    loop = Loop(num_blocks=6)
    first, second = loop.add([1, 2, 3, 4], 16), loop.add([5, 6, 7, 8], 16)
    while not loop.scheduler.num_preemptions:
        loop.step()
    assert second.block_table == []
    assert second.num_output_tokens > 0
    loop.run()
    assert loop.finished == [first, second]
    assert first.num_preemptions == 0
    assert loop.scheduler.num_prefix_hit_tokens == 0, "its own blocks, found again, are no hit"
    assert [output(sequence) for sequence in (first, second)] == [expected(first), expected(second)]


def test_the_urgent_takes_the_blocks_of_the_less_urgent() -> None:
    loop = Loop(num_blocks=6)
    slow = loop.add(list(range(1, 9)), 12, priority=5)
    loop.step()
    urgent = loop.add(list(range(20, 36)), 4, priority=1)
    chunks = loop.step()
    assert [chunk.sequence for chunk in chunks] == [urgent], "the decode scheduled before it gave way"
    assert slow in loop.scheduler.waiting
    loop.run()
    assert [output(sequence) for sequence in loop.finished] == [expected(urgent), expected(slow)]


def test_the_urgent_takes_a_place_of_the_less_urgent() -> None:
    loop = Loop(max_sequences=1)
    slow = loop.add([1, 2], 6, priority=5)
    loop.step()
    urgent = loop.add([3, 4], 2, priority=1)
    loop.run()
    assert loop.finished == [urgent, slow]
    assert output(slow) == expected(slow)


def test_nobody_is_preempted_for_one_that_would_not_fit_anyway() -> None:
    loop = Loop(num_blocks=8)
    keeper = loop.add(list(range(1, 25)), 4, priority=0)
    bystander = loop.add([7], 3, priority=5)
    loop.step()
    loop.step()
    loop.add(list(range(30, 50)), 2, priority=1)
    loop.step()
    assert loop.scheduler.num_preemptions == 0
    assert {keeper, bystander} >= set(loop.scheduler.running)
    loop.run()


def test_nobody_is_preempted_for_one_whose_cached_prefix_the_victim_holds() -> None:
    """Those blocks are not freed for it by the preemption: it wants to share them."""
    loop = Loop(num_blocks=7)
    keeper = loop.add(list(range(1, 8)), 4, priority=0)
    holder = loop.add(list(range(20, 32)), 4, priority=5)
    loop.step()
    loop.add([*range(20, 32), *range(50, 60)], 2, priority=1)
    loop.step()
    assert loop.scheduler.running == [keeper, holder]
    loop.run()
    assert all(output(sequence) == expected(sequence) for sequence in loop.finished)


def test_a_victim_that_holds_the_cached_prefix_frees_less_than_it_seems() -> None:
    loop = Loop(num_blocks=10)
    loop.add(list(range(1, 10)), 6, priority=5)
    loop.add(list(range(20, 33)), 6, priority=6)
    loop.step()
    loop.step()
    urgent = loop.add([*range(20, 32), *range(50, 70)], 1, priority=1)
    loop.step()
    assert loop.scheduler.running == [urgent]
    assert urgent.num_cached_tokens == 12
    loop.run()
    assert all(output(sequence) == expected(sequence) for sequence in loop.finished)


def test_the_preempted_waits_before_those_who_came_after_it() -> None:
    loop = Loop(num_blocks=6)
    _, second, third = (loop.add([index] * 4, 16) for index in (1, 2, 3))
    while not second.num_preemptions:
        loop.step()
    assert loop.scheduler.waiting == [second, third]


def test_nobody_overtakes_a_waiting_sequence_that_does_not_fit() -> None:
    loop = Loop(num_blocks=8)
    loop.add(list(range(1, 17)), 10)
    loop.step()
    long = loop.add(list(range(30, 50)), 4)
    short = loop.add([7], 1)
    loop.step()
    assert loop.scheduler.waiting == [long, short]
    loop.run()
    assert all(output(sequence) == expected(sequence) for sequence in loop.finished)


def test_a_half_done_prompt_goes_on_behind_a_waiting_one_that_does_not_fit() -> None:
    loop = Loop(num_blocks=14, token_budget=4)
    loop.add(list(range(1, 17)), 12, priority=0)
    for _ in range(4):
        loop.step()
    behind = loop.add(list(range(30, 46)), 2, priority=5)
    loop.step()
    waiting = loop.add(list(range(40, 76)), 4, priority=1)
    computed = behind.num_computed_tokens
    loop.step()
    assert loop.scheduler.waiting == [waiting]
    assert behind.num_computed_tokens > computed > 0
    loop.run()
    assert all(output(sequence) == expected(sequence) for sequence in loop.finished)


def test_removal_frees_at_once_whether_waiting_or_running() -> None:
    loop = Loop(max_sequences=1)
    running, waiting = loop.add([1, 2, 3], 5), loop.add([4, 5, 6], 5)
    loop.step()
    loop.scheduler.remove(waiting)
    loop.scheduler.remove(running)
    assert loop.pool.num_used == 0
    assert not loop.scheduler.waiting
    assert not loop.scheduler.running


def test_budget_and_places_must_be_positive() -> None:
    with pytest.raises(ValueError, match="token_budget 0"):
        Scheduler(BlockPool(1, 4), token_budget=0, max_sequences=1)


@st.composite
def requests(draw: st.DrawFn) -> list[tuple[int, list[int], int, int]]:
    """(arrival step, prompt, max_tokens, priority), with prompts over two letters so that prefixes are shared."""
    size = draw(st.integers(1, 9))
    return [
        (
            draw(st.integers(0, 12)),
            draw(st.lists(st.integers(1, 2), min_size=1, max_size=18)),
            draw(st.integers(1, 14)),
            draw(st.integers(0, 2)),
        )
        for _ in range(size)
    ]


@settings(max_examples=150, deadline=None)
@given(
    requests=requests(),
    num_blocks=st.integers(8, 16),
    token_budget=st.integers(1, 12),
    max_sequences=st.integers(1, 5),
    data=st.data(),
)
def test_whatever_comes_all_finish_with_the_right_tokens_and_no_block_is_lost(
    requests: list[tuple[int, list[int], int, int]],
    num_blocks: int,
    token_budget: int,
    max_sequences: int,
    data: st.DataObject,
) -> None:
    loop = Loop(num_blocks=num_blocks, token_budget=token_budget, max_sequences=max_sequences)
    pending = sorted(requests, key=lambda request: request[0])
    num_aborted = 0
    for step in range(13):
        while pending and pending[0][0] <= step:
            _, prompt, max_tokens, priority = pending.pop(0)
            loop.add(prompt, max_tokens, priority)
        live = loop.scheduler.running + loop.scheduler.waiting
        if live and data.draw(st.integers(0, 9)) == 0:
            loop.scheduler.remove(data.draw(st.sampled_from(live)))
            num_aborted += 1
        loop.step()
    loop.run()
    assert len(loop.finished) + num_aborted == len(requests)
    assert all(output(sequence) == expected(sequence) for sequence in loop.finished)
