"""Background work in an engine: what is left of a step, of the cache and of the places, and nothing more."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from math import inf
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.profile import StepShape
from cluster.request import GenerationRequest, TokenDelta
from engine.background_room import PROMPT_TOKENS, BackgroundRoom
from engine.engine import Engine
from engine.scheduler import Scheduler
from engine.sequence import ScheduledChunk, Sequence
from engine.wire import joined
from tests.engine.paged_hash_runner import VOCAB_SIZE, PagedHashRunner, continuation
from tests.engine.test_engine import PROMPT, drain, engine_of, request
from tests.engine.test_scheduler import Loop, expected, output

BACKGROUND: dict[str, Any] = {"objective": "background"}
BOUNDED: dict[str, Any] = {"objective": "latency", "tpot_ms": 100.0}


def step_s(shape: StepShape) -> float:
    """10 ms, and 1 ms a token."""
    return 0.010 + 0.001 * (shape.decode_sequences + shape.prefill_tokens)


@dataclass
class TimedLoop(Loop):
    """Its clock advances by what each step takes."""

    alone_s: float = inf
    now_s: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.scheduler = Scheduler(
            self.pool,
            token_budget=self.token_budget,
            max_sequences=self.max_sequences,
            prefix_caching=self.prefix_caching,
            background=BackgroundRoom(predict_step_s=step_s, alone_s=self.alone_s),
            clock=lambda: self.now_s,
        )

    def step(self) -> list[ScheduledChunk]:
        chunks = super().step()
        self.now_s += 0.010 + 0.001 * sum(chunk.num_tokens for chunk in chunks)
        for chunk in chunks:
            if chunk.sequence.num_output_tokens and chunk.sequence.first_token_s is None:
                chunk.sequence.first_token_s = self.now_s
        return chunks


def background(chunks: list[ScheduledChunk]) -> list[ScheduledChunk]:
    return [chunk for chunk in chunks if chunk.sequence.is_background]


def test_an_online_prompt_has_the_next_step_to_itself() -> None:
    loop = TimedLoop(num_blocks=64, token_budget=64)
    rows = [loop.add([index] * 6, 30, **BACKGROUND) for index in range(1, 5)]
    for _ in range(3):
        assert len(background(loop.step())) == 4, "alone they have all of it"
    online = loop.add([9] * 5, 3, **BOUNDED)
    assert [(chunk.sequence, chunk.num_tokens) for chunk in loop.step()] == [(online, 5)]
    assert all(row.num_preemptions == 0 for row in rows), "they wait as they are"
    loop.run()
    assert [output(each) for each in (online, *rows)] == [expected(each) for each in (online, *rows)]


@pytest.mark.parametrize("tpot_ms", [None, 20.0])
def test_nothing_beside_one_who_was_promised_the_whole_step(tpot_ms: float | None) -> None:
    """20 ms: half of it is a step with nobody else."""
    loop = TimedLoop(num_blocks=64)
    loop.add([1] * 4, 40, **BACKGROUND)
    loop.step()
    online = loop.add([2] * 4, 10, objective="latency", tpot_ms=tpot_ms)
    while online not in loop.finished:
        assert not background(loop.step())


def test_online_answers_stay_within_half_of_their_limit_and_the_rest_is_used() -> None:
    loop = TimedLoop(num_blocks=512, token_budget=64, max_sequences=64)
    for index in range(1, 61):
        loop.add([index] * 4, 40, **BACKGROUND)
    loop.step()
    online = loop.add([2] * 4, 30, **(BOUNDED | {"tpot_ms": 60.0}))
    loop.step()
    begun_s, rows = loop.now_s, 0
    while online not in loop.finished:
        rows += len(background(loop.step()))
    tpot_s = (loop.now_s - begun_s) / 29
    assert tpot_s <= 0.030 + 1e-9
    assert rows >= 29 * 15 - 2 * 60, "a step of 30 ms holds 19 tokens beside its own; two limits are saved"


def test_a_short_answer_has_room_for_a_later_prompt() -> None:
    loop = TimedLoop(num_blocks=512, token_budget=64, max_sequences=64)
    for index in range(1, 61):
        loop.add([index] * 4, 40, **BACKGROUND)
    loop.step()
    online = loop.add([2] * 4, 4, **(BOUNDED | {"tpot_ms": 60.0}))
    loop.step()
    begun_s = loop.now_s
    assert not background(loop.step()), "nothing is saved up yet"
    loop.add([3] * 60, 1, **(BOUNDED | {"tpot_ms": 60.0}))
    while online not in loop.finished:
        loop.step()
    assert (loop.now_s - begun_s) / 3 <= 0.060


def test_a_step_alone_is_no_longer_than_who_comes_may_wait() -> None:
    loop = TimedLoop(num_blocks=512, token_budget=512, max_sequences=64, alone_s=0.050)
    for index in range(1, 61):
        loop.add([index] * 20, 10, **BACKGROUND)
    while loop.scheduler.waiting or loop.scheduler.running:
        began_s = loop.now_s
        assert loop.step()
        assert loop.now_s - began_s <= 0.050 + 1e-9


def test_alone_it_advances_however_long_a_step_is_predicted_to_be() -> None:
    loop = TimedLoop(num_blocks=64, token_budget=64, alone_s=0.001)
    row = loop.add([1] * 40, 3, **BACKGROUND)
    assert [chunk.num_tokens for chunk in loop.step()] == [PROMPT_TOKENS]
    loop.run()
    assert output(row) == expected(row)


def test_its_blocks_and_places_are_an_online_requests_at_once() -> None:
    loop = TimedLoop(num_blocks=8, max_sequences=2)
    rows = [loop.add([index] * 10, 8, **BACKGROUND) for index in (1, 2)]
    loop.step()
    loop.step()
    assert loop.pool.num_free < 3
    online = loop.add([3] * 20, 4, **BOUNDED)
    assert {chunk.sequence for chunk in loop.step()} == {online}
    loop.run()
    assert loop.finished[0] is online
    assert [output(row) for row in rows] == [expected(row) for row in rows]


terms = st.one_of(
    st.just(BACKGROUND),
    st.fixed_dictionaries({"objective": st.just("latency"), "tpot_ms": st.sampled_from([None, 15.0, 40.0, 200.0])}),
    st.fixed_dictionaries({"objective": st.just("throughput"), "priority": st.integers(0, 3)}),
)


@settings(max_examples=80, deadline=None)
@given(
    requests=st.lists(st.tuples(st.integers(0, 8), terms, st.integers(1, 10), st.integers(1, 10)), max_size=14),
    num_blocks=st.integers(6, 24),
    alone_s=st.sampled_from([0.001, 0.02, inf]),
)
def test_online_requests_run_as_if_there_were_no_background(
    requests: list[tuple[int, dict[str, Any], int, int]], num_blocks: int, alone_s: float
) -> None:
    """Step by step the same online chunks, with background work of the smallest priority and without; all ends."""
    both = TimedLoop(num_blocks=num_blocks, token_budget=12, max_sequences=3, prefix_caching=False, alone_s=alone_s)
    alone = TimedLoop(num_blocks=num_blocks, token_budget=12, max_sequences=3, prefix_caching=False)
    pending, number = sorted(requests, key=lambda each: each[0]), 0
    names: dict[Sequence, int] = {}
    for step in range(400):
        while pending and pending[0][0] <= step:
            _, each, prompt, tokens = pending.pop(0)
            number += 1
            first = {"priority": -9, **each} if each is BACKGROUND else each
            names[both.add([number] * prompt, tokens, **first)] = number
            if each is not BACKGROUND:
                names[alone.add([number] * prompt, tokens, **each)] = number
        if not (pending or both.scheduler.waiting or both.scheduler.running):
            break
        online = [chunk for chunk in both.step() if not chunk.sequence.is_background]
        found = [(names[chunk.sequence], chunk.start, chunk.num_tokens) for chunk in online]
        assert found == [(names[one.sequence], one.start, one.num_tokens) for one in alone.step()]
    assert len(both.finished) == len(requests)
    assert all(output(each) == expected(each) for each in both.finished)


def of_background(request_id: str, prompt: list[int] | None = None, **sampling: object) -> GenerationRequest:
    return replace(request(request_id, prompt, **sampling), objective="background")


def fill(engine: Engine, make: Any, name: str) -> int:
    count = 0
    while engine.add(make(f"{name}{count}")).admitted:
        count += 1
    return count


def test_the_rooms_of_both_kinds_are_apart() -> None:
    engine = engine_of(kv_capacity_tokens=4096, max_sequences=4, max_waiting=3)
    assert fill(engine, of_background, "row") == 8, "two batches"
    assert fill(engine, request, "online") == 7, "running and waiting, as without it"
    whole = drain(engine)
    assert all(delta.token_ids == continuation(PROMPT, 5) for delta in whole.values())


def test_a_load_without_it_but_in_its_own_figures() -> None:
    engine = engine_of(kv_capacity_tokens=4096, max_sequences=8)
    engine.add(of_background("row", max_tokens=20))
    waiting = engine.load()
    assert (waiting.background_waiting, waiting.background_prefill_tokens) == (1, len(PROMPT))
    assert (waiting.waiting_requests, waiting.waiting_prefill_tokens, waiting.promised_kv_tokens) == (0, 0, 0)
    engine.step()
    running = engine.load()
    assert (running.background_sequences, running.background_kv_tokens) == (1, 8)
    assert (running.decode_sequences, running.kv_tokens_used, running.prefill_tokens_per_s) == (0, 0, 0.0)
    engine.add(request("online"))
    engine.step()
    beside = engine.load()
    assert (beside.decode_sequences, beside.kv_tokens_used, beside.background_sequences) == (1, 8, 1)
    engine.abort("row")
    assert engine.load().background_sequences == 0
    drain(engine)


@pytest.mark.parametrize("lookahead", [0, 1])
def test_the_same_text_in_a_cache_for_a_few_sequences(lookahead: int) -> None:
    """Paused, preempted, and with a step launched before the last is read."""
    rng = random.Random(7)
    engine = engine_of(
        runner=PagedHashRunner(18, 4, lookahead=lookahead),
        predict_step_s=lambda shape: 1e-6 * (shape.decode_sequences + shape.prefill_tokens),
        kv_capacity_tokens=72,
        max_sequences=4,
    )
    prompts: dict[str, list[int]] = {}
    whole: dict[str, TokenDelta] = {}
    for number in range(24):
        name, prompt = f"{number}", [rng.randrange(1, VOCAB_SIZE) for _ in range(rng.randrange(3, 12))]
        make = of_background if number % 2 else request
        each = replace(make(name, prompt, max_tokens=20), tpot_ms=None if number % 2 else rng.choice([None, 50.0]))
        if engine.add(each).admitted:
            prompts[name] = prompt
        for delta in [delta for _ in range(rng.randrange(6)) for delta in engine.step()]:
            whole[delta.request_id] = joined(whole[delta.request_id], delta) if delta.request_id in whole else delta
    while engine.has_work:
        for delta in engine.step():
            whole[delta.request_id] = joined(whole[delta.request_id], delta) if delta.request_id in whole else delta
    assert engine.load().preemptions > 0
    assert sum(int(name) % 2 for name in prompts) > 4
    assert {name: delta.token_ids for name, delta in whole.items()} == {
        name: continuation(prompt, 20) for name, prompt in prompts.items()
    }
