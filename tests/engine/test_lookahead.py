"""An engine that launches a step before it has read the last: the same text, whatever ends meanwhile."""

from __future__ import annotations

import random

import pytest

from cluster.request import GenerationRequest, SamplingParams, TokenDelta
from engine.engine import Engine
from tests.engine.paged_hash_runner import VOCAB_SIZE, PagedHashRunner, continuation
from tests.engine.test_engine import PROMPT, drain, engine_of, request


def looking_ahead(num_blocks: int = 32, **runner: object) -> Engine:
    return engine_of(runner=PagedHashRunner(num_blocks, 4, lookahead=1, **runner))


def test_the_first_step_brings_nothing_yet() -> None:
    engine = looking_ahead()
    engine.add(request(max_tokens=2))
    assert engine.step() == []
    assert [delta.token_ids for delta in engine.step()] == [continuation(PROMPT, 1)]


def test_as_many_steps_as_tokens_where_the_end_is_known() -> None:
    runner = PagedHashRunner(32, 4, lookahead=1)
    engine = engine_of(runner=runner)
    engine.add(request(max_tokens=5))
    assert drain(engine)["a"].token_ids == continuation(PROMPT, 5)
    assert len(runner.steps) == 5


def test_a_token_after_the_end_is_dropped() -> None:
    third = continuation(PROMPT, 3)[2]
    runner = PagedHashRunner(32, 4, eos=third, lookahead=1)
    engine = engine_of(runner=runner)
    engine.add(request(max_tokens=9))
    delta = drain(engine)["a"]
    assert (delta.token_ids, delta.finish_reason) == (continuation(PROMPT, 3), "stop")
    assert len(runner.steps) == 4, "the step that was launched before the end was read"


def test_an_id_used_again_while_its_old_step_runs() -> None:
    engine = looking_ahead()
    engine.add(request(max_tokens=9))
    engine.step()
    engine.abort("a")
    other = [2, 7, 1, 8]
    engine.add(request(prompt=other, max_tokens=3))
    deltas = [delta for _ in range(6) for delta in engine.step()]
    assert [delta.finish_reason for delta in deltas] == ["abort", None, None, "length"]
    assert [token for delta in deltas for token in delta.token_ids] == continuation(other, 3)


@pytest.mark.parametrize("seed", range(12))
def test_the_same_text_as_without(seed: int) -> None:
    """Preemption, prefix hits, priorities and early ends, in a cache for a few sequences."""
    rng = random.Random(seed)
    shared = [rng.randrange(1, VOCAB_SIZE) for _ in range(12)]
    requests = [
        GenerationRequest(
            request_id=str(index),
            prompt_token_ids=shared[: rng.randrange(13)] + [rng.randrange(1, VOCAB_SIZE) for _ in range(5)],
            sampling=SamplingParams(max_tokens=rng.randrange(8, 40)),
            priority=rng.randrange(3),
        )
        for index in range(8)
    ]
    eos = rng.randrange(1, VOCAB_SIZE)
    whole: list[dict[str, TokenDelta]] = []
    for lookahead in (0, 1):
        engine = engine_of(
            runner=PagedHashRunner(18, 4, eos=eos, lookahead=lookahead), kv_capacity_tokens=72, max_sequences=6
        )
        for each in requests:
            assert engine.add(each).admitted
        whole.append(drain(engine))
        if lookahead:
            assert engine.load().preemptions > 0
    for request_id, delta in whole[0].items():
        assert whole[1][request_id].token_ids == delta.token_ids
        assert whole[1][request_id].finish_reason == delta.finish_reason
