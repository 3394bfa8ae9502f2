"""Scheduler by rank: who gets the next chunk, who gives way, whatever else waits."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from engine.sequence import Sequence
from tests.engine.test_scheduler import Loop, expected, output

BATCH = {"objective": "throughput", "deadline_s": 600.0}
INTERACTIVE = {"objective": "latency", "deadline_s": 0.5}


def test_an_interactive_request_gets_the_next_chunk_before_a_thousand_of_throughput() -> None:
    loop = Loop(num_blocks=128, token_budget=16, max_sequences=8)
    for index in range(1000):
        loop.add([1 + index % 7] * 6, 40, arrived_s=index / 100, **BATCH)
    for _ in range(5):
        loop.step()
    assert len(loop.scheduler.running) == 8, "every place is taken"
    urgent = loop.add(list(range(1, 9)), 3, arrived_s=700.0, **INTERACTIVE)
    first = loop.step()
    assert [chunk.num_tokens for chunk in first if chunk.sequence is urgent] == [8]
    assert len(loop.scheduler.waiting) > 900
    for _ in range(2):
        loop.step()
    assert loop.finished[-1] is urgent
    assert output(urgent) == expected(urgent)


def test_it_takes_what_is_left_of_a_step_before_a_throughput_prompt_half_done() -> None:
    loop = Loop(token_budget=6)
    batch = loop.add(list(range(1, 31)), 2, **BATCH)
    loop.step()
    urgent = loop.add([5, 6, 7], 2, **INTERACTIVE)
    assert [(chunk.sequence, chunk.num_tokens) for chunk in loop.step()] == [(urgent, 3), (batch, 3)]


def test_within_a_level_the_earliest_deadline_comes_first() -> None:
    loop = Loop(max_sequences=1)
    late, soon, late_already, without = (
        loop.add([index], 1, arrived_s=arrived_s, deadline_s=deadline_s)
        for index, (arrived_s, deadline_s) in enumerate([(0.0, 2.0), (1.0, 0.5), (1.2, -0.1), (0.0, None)], 1)
    )
    loop.run()
    assert loop.finished == [late_already, soon, late, without]


def test_one_without_a_deadline_is_not_overtaken_for_ever() -> None:
    loop = Loop(max_sequences=1)
    without = loop.add([1], 1)
    soon = loop.add([2], 1, arrived_s=599.0, deadline_s=0.5)
    later = loop.add([3], 1, arrived_s=600.0, deadline_s=0.5)
    loop.run()
    assert loop.finished == [soon, without, later]


def test_the_clients_priority_counts_before_the_objective() -> None:
    loop = Loop(max_sequences=1)
    second, third = loop.add([1], 1, **INTERACTIVE), loop.add([2], 1, priority=1, **INTERACTIVE)
    first = loop.add([3], 1, priority=-1, **BATCH)
    loop.run()
    assert loop.finished == [first, second, third]


terms = st.fixed_dictionaries(
    {
        "priority": st.integers(-1, 1),
        "objective": st.sampled_from(["latency", "throughput"]),
        "deadline_s": st.none() | st.floats(-5, 700),
        "arrived_s": st.floats(0, 100),
    }
)


@settings(max_examples=100, deadline=None)
@given(requests=st.lists(terms, min_size=1, max_size=12), token_budget=st.integers(1, 9), places=st.integers(1, 5))
def test_first_chunks_come_in_order_of_rank(requests: list[dict[str, Any]], token_budget: int, places: int) -> None:
    """Of what waits together; priority first, then the objective, then the deadline, then the arrival."""
    loop = Loop(num_blocks=20, token_budget=token_budget, max_sequences=places)
    sequences = [loop.add([1 + index] * (1 + index % 6), 2, **each) for index, each in enumerate(requests)]
    begun: list[Sequence] = []
    while loop.scheduler.waiting or loop.scheduler.running:
        begun += [chunk.sequence for chunk in loop.step() if chunk.sequence not in begun]

    def key(sequence: Sequence) -> tuple[int, bool, float, int]:
        each = requests[sequence.arrival]
        due_s = each["arrived_s"] + (600.0 if each["deadline_s"] is None else each["deadline_s"])
        return (each["priority"], each["objective"] == "throughput", due_s, sequence.arrival)

    assert begun == sorted(sequences, key=key)


@settings(max_examples=80, deadline=None)
@given(
    requests=st.lists(st.tuples(st.integers(0, 6), terms), min_size=2, max_size=10),
    num_blocks=st.integers(6, 9),
    data=st.data(),
)
def test_those_that_give_way_have_the_largest_ranks(
    requests: list[tuple[int, dict[str, Any]]], num_blocks: int, data: st.DataObject
) -> None:
    loop = Loop(num_blocks=num_blocks, token_budget=12, max_sequences=3)
    pending = sorted(requests, key=lambda request: request[0])
    for step in range(200):
        while pending and pending[0][0] <= step:
            prompt = [data.draw(st.integers(1, 3))] * data.draw(st.integers(1, 10))
            loop.add(prompt, data.draw(st.integers(1, 10)), **pending.pop(0)[1])
        if not (pending or loop.scheduler.waiting or loop.scheduler.running):
            break
        before = {sequence.arrival: sequence.num_preemptions for sequence in loop.scheduler.running}
        ran = list(loop.scheduler.running)
        loop.step()
        gave_way = [sequence for sequence in ran if sequence.num_preemptions > before[sequence.arrival]]
        stayed = [sequence for sequence in ran if sequence not in gave_way and sequence not in loop.finished]
        assert all(victim.rank > keeper.rank for victim in gave_way for keeper in stayed)
    assert len(loop.finished) == len(requests)
    assert all(output(sequence) == expected(sequence) for sequence in loop.finished)
