"""queued_s of a request's first delta: from its arrival to the step that ran its first chunk, and nothing of later."""

from __future__ import annotations

import time

from engine.engine import Engine
from tests.engine.paged_hash_runner import PagedHashRunner
from tests.engine.test_engine import engine_of, request

PAUSE_S = 0.02


def waits(engine: Engine, *, pause_s: float = 0.0) -> dict[str, list[float | None]]:
    """What each request's deltas say of its time in the queue, in order; `pause_s` after each step."""
    told: dict[str, list[float | None]] = {}
    while engine.has_work:
        for delta in engine.step():
            told.setdefault(delta.request_id, []).append(delta.queued_s)
        time.sleep(pause_s)
    return told


def test_the_first_delta_tells_how_long_the_request_waited() -> None:
    engine = engine_of(max_sequences=1)
    began_s = time.monotonic()
    engine.add(request("a", max_tokens=3))
    time.sleep(PAUSE_S)
    engine.add(request("b", max_tokens=2))
    told = waits(engine, pause_s=PAUSE_S)
    took_s = time.monotonic() - began_s
    (first, *others), (second, *rest) = told["a"], told["b"]
    assert first is not None
    assert second is not None
    assert PAUSE_S <= first < took_s
    assert 3 * PAUSE_S <= second < took_s, "until the other's three steps were through"
    assert (others, rest) == ([None, None], [None])


def test_a_prompt_in_chunks_waits_until_its_first() -> None:
    runner = PagedHashRunner(32, 4)
    engine = engine_of(runner=runner, token_budget=4)
    engine.add(request(prompt=list(range(1, 17)), max_tokens=1))
    began_s = time.monotonic()
    engine.step()
    first_step_s = time.monotonic() - began_s
    time.sleep(PAUSE_S)
    ((queued_s,),) = waits(engine, pause_s=PAUSE_S).values()
    assert len(runner.steps) == 4
    assert queued_s is not None
    assert queued_s < first_step_s + PAUSE_S / 2, "three chunks and their pauses are no part of it"


def test_one_that_is_preempted_waited_only_once() -> None:
    engine = engine_of(runner=PagedHashRunner(8, 4), kv_capacity_tokens=32)
    engine.add(request("a", max_tokens=20, priority=0))
    engine.add(request("b", max_tokens=20, priority=1))
    told = waits(engine)
    assert engine.load().preemptions > 0
    assert [queued_s is not None for queued_s in told["b"]] == [True] + 19 * [False]


def test_with_lookahead_it_is_the_launch_that_counts() -> None:
    engine = engine_of(runner=PagedHashRunner(32, 4, lookahead=1))
    engine.add(request(max_tokens=2))
    began_s = time.monotonic()
    assert engine.step() == []
    launched_s = time.monotonic() - began_s
    time.sleep(PAUSE_S)
    ((queued_s, later_s),) = waits(engine).values()
    assert queued_s is not None
    assert queued_s < launched_s + PAUSE_S / 2
    assert later_s is None


def test_who_ends_before_a_step_says_nothing_of_a_wait() -> None:
    engine = engine_of()
    engine.add(request())
    engine.abort("a")
    assert waits(engine) == {"a": [None]}


def test_the_first_token_tells_how_long_its_prompt_took() -> None:
    engine = engine_of(runner=PagedHashRunner(32, 4), token_budget=4)
    engine.add(request(prompt=list(range(1, 17)), max_tokens=2))
    began_s = time.monotonic()
    told = []
    while engine.has_work:
        told += [delta.prefill_s for delta in engine.step()]
        time.sleep(PAUSE_S)
    first_s, second_s = told
    assert first_s is not None
    assert 3 * PAUSE_S <= first_s < time.monotonic() - began_s, "four chunks with a pause between them"
    assert second_s is None
