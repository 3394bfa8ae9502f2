"""Engine: admission, ends, aborts, errors and Load, with a runner that proves the block tables; see test_smollm2.py."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache

import pytest

from cluster.engine_spec import EngineSpec
from cluster.load import Load
from cluster.profile import StepShape
from cluster.request import GenerationRequest, SamplingParams, TokenDelta
from cluster.variants import Variant
from engine.checkpoint import ensure_checkpoint
from engine.engine import MAX_FAILED_STEPS, Engine
from engine.sequence import ChunkResult, ScheduledChunk
from engine.text import TextCodec
from engine.wire import joined
from tests.engine.paged_hash_runner import VOCAB_SIZE, PagedHashRunner, continuation

PROMPT = [3, 1, 4, 1, 5, 9]


def spec(**changes: object) -> EngineSpec:
    values: dict[str, object] = {
        "replica_id": "bf16-0",
        "checkpoint": "",
        "variant": Variant(name="bf16"),
        "kv_capacity_tokens": 128,
        "block_size": 4,
        "max_context": 100,
        "token_budget": 32,
    }
    return EngineSpec(**(values | changes))


def engine_of(
    *,
    runner: PagedHashRunner | None = None,
    text: TextCodec | None = None,
    predict_step_s: Callable[[StepShape], float] | None = None,
    **changes: object,
) -> Engine:
    of = spec(**changes)
    runner = runner or PagedHashRunner(of.kv_capacity_tokens // of.block_size, of.block_size)
    return Engine(of, runner, text, predict_step_s)


def request(request_id: str = "a", prompt: list[int] | None = None, priority: int = 0, **sampling: object):
    return GenerationRequest(
        request_id=request_id,
        prompt_token_ids=PROMPT if prompt is None else prompt,
        sampling=SamplingParams(**{"max_tokens": 5, **sampling}),
        priority=priority,
    )


def of_throughput(request_id: str, prompt: list[int] | None = None, **sampling: object) -> GenerationRequest:
    return replace(request(request_id, prompt, **sampling), objective="throughput", deadline_s=600.0)


def drain(engine: Engine) -> dict[str, TokenDelta]:
    """All deltas of each request as one."""
    whole: dict[str, TokenDelta] = {}
    while engine.has_work:
        for delta in engine.step():
            earlier = whole.get(delta.request_id)
            assert earlier is None or earlier.finish_reason is None, "a delta after the last"
            whole[delta.request_id] = joined(earlier, delta) if earlier else delta
    assert engine.load().kv_tokens_used == 0
    return whole


def test_a_request_runs_to_its_maximum() -> None:
    engine = engine_of()
    assert engine.add(request()).admitted
    delta = drain(engine)["a"]
    assert (delta.token_ids, delta.finish_reason) == (continuation(PROMPT, 5), "length")


def test_one_delta_a_step() -> None:
    engine = engine_of()
    engine.add(request())
    deltas = [delta for _ in range(5) for delta in engine.step()]
    assert [len(delta.token_ids) for delta in deltas] == [1] * 5
    assert [delta.finish_reason for delta in deltas] == [None] * 4 + ["length"]
    assert engine.step() == []


def test_end_of_sequence_ends_and_is_part_of_the_tokens() -> None:
    third = continuation(PROMPT, 3)[2]
    engine = engine_of(runner=PagedHashRunner(32, 4, eos=third))
    engine.add(request("stops"))
    engine.add(request("ignores", ignore_eos=True))
    engine.add(request("not yet", min_tokens=3))
    done = drain(engine)
    assert (done["stops"].token_ids, done["stops"].finish_reason) == (continuation(PROMPT, 3), "stop")
    assert (len(done["ignores"].token_ids), done["ignores"].finish_reason) == (5, "length")
    assert len(done["not yet"].token_ids) == 5


def test_stop_token_ids_end_too() -> None:
    engine = engine_of()
    engine.add(request(stop_token_ids=(continuation(PROMPT, 2)[1],)))
    delta = drain(engine)["a"]
    assert (len(delta.token_ids), delta.finish_reason) == (2, "stop")


@cache
def smollm2() -> TextCodec:
    return TextCodec(ensure_checkpoint("embedded:smollm2-135m"))


def test_a_stop_string_ends_at_the_token_that_completes_it() -> None:
    text = smollm2()
    tokens = continuation(PROMPT, 12)
    words = text.decode(tokens[:6])
    stop = words[-3:]
    first = next(size for size in range(1, 13) if stop in text.decode(tokens[:size]))
    engine = engine_of(text=text)
    engine.add(request(max_tokens=12, stop=(stop,)))
    delta = drain(engine)["a"]
    assert (delta.token_ids, delta.finish_reason) == (tokens[:first], "stop")


def test_requests_in_one_batch_do_not_disturb_each_other() -> None:
    engine = engine_of(max_sequences=4)
    prompts = {str(index): [index + 1] * (index + 1) for index in range(9)}
    for name, prompt in prompts.items():
        engine.add(request(name, prompt, max_tokens=7))
    done = drain(engine)
    assert {name: done[name].token_ids for name in prompts} == {
        name: continuation(prompt, 7) for name, prompt in prompts.items()
    }


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        (request(prompt=[]), "prompt"),
        (request(max_tokens=0), "max_tokens 0"),
        (request(prompt=[1] * 97), "prompt of 97 tokens and max_tokens 5: together 102, the context is 100"),
        (request(prompt=[1, VOCAB_SIZE]), f"prompt: token id {VOCAB_SIZE}"),
        (request(prompt=[-1]), "token id -1"),
        (request(logit_bias={VOCAB_SIZE: 1.0}), "logit_bias"),
        (request(stop=("x",)), "stop"),
    ],
)
def test_what_can_never_run_is_a_value_error(wrong: GenerationRequest, text: str) -> None:
    engine = engine_of()
    with pytest.raises(ValueError, match=text):
        engine.add(wrong)
    assert not engine.has_work


def test_the_cache_bounds_the_context_too() -> None:
    with pytest.raises(ValueError, match="the context is 64"):
        engine_of(kv_capacity_tokens=64).add(request(prompt=[1] * 60))


def test_a_request_id_is_used_once_at_a_time() -> None:
    engine = engine_of()
    engine.add(request())
    with pytest.raises(ValueError, match="'a' is running already"):
        engine.add(request())
    drain(engine)
    assert engine.add(request()).admitted


def test_an_abort_frees_before_it_returns_and_is_told_at_the_next_step() -> None:
    engine = engine_of()
    engine.add(request("goes"))
    engine.add(request("stays"))
    engine.step()
    used = engine.load().kv_tokens_used
    engine.abort("goes")
    assert engine.load().kv_tokens_used < used
    deltas = engine.step()
    assert [(delta.request_id, delta.finish_reason, len(delta.token_ids)) for delta in deltas] == [
        ("goes", "abort", 0),
        ("stays", None, 1),
    ]
    assert drain(engine)["stays"].token_ids == continuation(PROMPT, 5)[2:]


def test_a_waiting_request_can_be_aborted_and_unknown_ones_are_ignored() -> None:
    engine = engine_of(max_sequences=1)
    engine.add(request("runs"))
    engine.add(request("waits"))
    engine.step()
    engine.abort("waits")
    engine.abort("nobody")
    engine.abort("waits")
    done = drain(engine)
    assert done["waits"].finish_reason == "abort"
    assert done["runs"].finish_reason == "length"


def test_an_abort_alone_is_work() -> None:
    engine = engine_of()
    engine.add(request())
    engine.abort("a")
    assert engine.has_work
    assert [delta.finish_reason for delta in engine.step()] == ["abort"]
    assert not engine.has_work


def test_tokens_from_the_cache_are_told_with_the_first_delta_only() -> None:
    engine = engine_of()
    prompt = list(range(1, 15))
    engine.add(request("first", prompt))
    drain(engine)
    engine.add(request("again", prompt))
    deltas = [delta for _ in range(5) for delta in engine.step()]
    assert [delta.cached_tokens for delta in deltas] == [12, 0, 0, 0, 0]
    load = engine.load()
    assert (load.prefix_hit_tokens, load.prompt_tokens, load.generated_tokens) == (12, 28, 10)


def test_prompt_logprobs_come_whole_with_the_first_token_after_chunks_and_a_preemption() -> None:
    engine = engine_of(kv_capacity_tokens=32, token_budget=4)
    prompt = list(range(1, 15))
    engine.add(request("scored", prompt, priority=1, prompt_logprobs=0, max_tokens=3))
    engine.step()
    engine.step()
    engine.add(request("urgent", [7] * 20, priority=0))
    deltas = []
    while engine.has_work:
        deltas += [delta for delta in engine.step() if delta.request_id == "scored"]
    assert engine.load().preemptions == 1
    first, *others = deltas
    assert first.prompt_logprobs is not None
    assert first.prompt_logprobs[0] is None
    assert [entry.token_id for entry in first.prompt_logprobs[1:] if entry] == prompt[1:]
    assert [entry.logprob for entry in first.prompt_logprobs[1:] if entry] == [-float(i) for i in range(1, 14)]
    assert all(delta.prompt_logprobs is None for delta in others)


def test_prompt_logprobs_are_computed_for_cached_prompts_too() -> None:
    engine = engine_of()
    prompt = list(range(1, 15))
    engine.add(request("first", prompt))
    drain(engine)
    engine.add(request("scored", prompt, prompt_logprobs=0))
    delta = drain(engine)["scored"]
    assert delta.prompt_logprobs is not None
    assert len(delta.prompt_logprobs) == 14
    assert delta.cached_tokens == 0


def test_preempted_requests_lose_and_repeat_nothing() -> None:
    engine = engine_of(kv_capacity_tokens=64)
    for index in range(8):
        engine.add(request(str(index), [index + 1] * 9, max_tokens=30))
    done = drain(engine)
    assert engine.load().preemptions > 0
    assert all(done[str(index)].token_ids == continuation([index + 1] * 9, 30) for index in range(8))


def test_a_request_that_cannot_be_computed_ends_alone() -> None:
    engine = engine_of(runner=PagedHashRunner(32, 4, poison=666))
    engine.add(request("good"))
    engine.add(request("bad", [1, 666]))
    done = drain(engine)
    assert done["bad"].finish_reason == "error"
    assert done["bad"].error == "ArithmeticError: poison"
    assert done["good"].token_ids == continuation(PROMPT, 5)


class NanRunner(PagedHashRunner):
    """As the real one answers to logits that are not finite."""

    def _run_chunk(self, chunk: ScheduledChunk) -> ChunkResult:
        if chunk.sequence.request.request_id == "bad":
            return ChunkResult(token_id=None, error="logits are not finite")
        return super()._run_chunk(chunk)


def test_an_error_in_a_result_ends_that_request() -> None:
    engine = engine_of(runner=NanRunner(32, 4))
    for name in ("good", "bad"):
        engine.add(request(name))
    done = drain(engine)
    assert (done["bad"].finish_reason, done["bad"].error) == ("error", "logits are not finite")
    assert done["good"].finish_reason == "length"


def test_an_engine_that_can_compute_nothing_says_so() -> None:
    engine = engine_of(runner=PagedHashRunner(32, 4, poison=PROMPT[0]))
    for _ in range(2):
        for index in range(MAX_FAILED_STEPS - 1):
            engine.add(request(str(index)))
            assert engine.step()[0].finish_reason == "error"
        engine.add(request("good", [7, 8]))
        drain(engine)
    for index in range(MAX_FAILED_STEPS - 1):
        engine.add(request(str(index)))
        engine.step()
    engine.add(request("last"))
    with pytest.raises(ArithmeticError, match="poison"):
        engine.step()


def test_a_full_engine_refuses_with_a_reason_and_a_time() -> None:
    engine = engine_of(max_sequences=1, max_waiting=2)
    verdicts = [engine.add(request(str(index))) for index in range(4)]
    assert [verdict.admitted for verdict in verdicts] == [True, True, True, False]
    assert verdicts[3].reason == "3 requests run or wait already, the limit is 3"
    assert verdicts[3].retry_after_s is not None
    assert verdicts[3].retry_after_s >= 1
    assert set(drain(engine)) == {"0", "1", "2"}


def test_waiting_prompt_tokens_are_bounded() -> None:
    engine = engine_of()
    admitted = 0
    while (verdict := engine.add(request(str(admitted), [1] * 50))).admitted:
        admitted += 1
    assert admitted == 5, "2 x 128 prompt tokens may wait"
    assert "250 prompt tokens wait already, 50 more" in verdict.reason


def test_throughput_requests_leave_room_for_the_others() -> None:
    engine = engine_of(max_sequences=1, max_waiting=4)
    admitted = [engine.add(of_throughput(str(index))).admitted for index in range(5)]
    assert admitted == [True, True, True, False, False]
    assert [engine.add(request(f"urgent {index}")).admitted for index in range(3)] == [True, True, False]
    drain(engine)


def test_throughput_prompts_leave_room_for_the_others() -> None:
    engine = engine_of()
    assert [engine.add(of_throughput(str(index), [1] * 50)).admitted for index in range(3)] == [True, True, False]
    assert engine.add(request("urgent", [1] * 50)).admitted


def test_an_interactive_request_is_answered_before_those_of_throughput_that_wait() -> None:
    engine = engine_of(max_sequences=2)
    for index in range(12):
        engine.add(of_throughput(str(index), max_tokens=8))
    engine.step()
    engine.add(replace(request("urgent", max_tokens=1), deadline_s=0.5))
    assert engine.step()[-1].request_id == "urgent"
    drain(engine)


def test_load_tells_what_a_latency_request_runs_before() -> None:
    engine = engine_of(max_sequences=3, token_budget=8)
    engine.add(request("decodes", [1] * 6, max_tokens=10))
    engine.step()
    assert engine.load().throughput_sequences == engine.load().throughput_promised_tokens == 0
    engine.add(of_throughput("prefills", [2] * 20, max_tokens=10))
    engine.add(of_throughput("waits", [3] * 70, max_tokens=10))
    engine.add(of_throughput("waits too", [4] * 7, max_tokens=10))
    engine.step()
    load = engine.load()
    assert (load.throughput_sequences, load.throughput_waiting) == (1, 2)
    assert load.throughput_kv_tokens == 20 == load.kv_tokens_used - 8
    assert load.throughput_prefill_tokens == load.waiting_prefill_tokens == 20 - 7 + 77
    assert load.throughput_promised_tokens == 10 + 80 + 17 == load.promised_kv_tokens - 8


MEASURED = ("measured_at_s", "prefill_tokens_per_s", "decode_tokens_per_s", "step_time_ratio", "rss_bytes")


def test_a_verdict_tells_the_load_with_its_request_as_if_it_were_counted_anew() -> None:
    engine = engine_of(max_sequences=3)

    def same_for_all(load: Load) -> Load:
        return replace(load, **dict.fromkeys(MEASURED, 0.0))

    for i in range(12):
        ask = of_throughput if i % 3 else request
        verdict = engine.add(ask(f"r{i}", PROMPT[: 1 + i % 6] * (1 + i % 2), max_tokens=3 + i))
        assert verdict.admitted
        assert same_for_all(verdict.load) == same_for_all(engine.load())
        if i % 4 == 3:
            engine.step()
        if i % 5 == 4:
            engine.abort(f"r{i - 1}")
    assert engine.load().prompt_tokens == sum((1 + i % 6) * (1 + i % 2) for i in range(12))
    drain(engine)


def test_load_counts_what_is_there() -> None:
    engine = engine_of(max_sequences=2, token_budget=8)
    assert engine.load().kv_tokens_free == 128
    engine.add(request("decodes", [1] * 6, max_tokens=10))
    engine.step()
    engine.add(request("prefills", [2] * 20, max_tokens=10))
    engine.add(request("waits", [3] * 5, max_tokens=10))
    engine.step()
    load = engine.load()
    assert (load.replica_id, load.variant, load.kv_tokens_capacity) == ("bf16-0", "bf16", 128)
    assert load.kv_tokens_used == 8 + 20
    assert load.decode_sequences == 1
    assert load.waiting_requests == 1
    assert load.waiting_prefill_tokens == (20 - 7) + 5
    assert load.promised_kv_tokens == (16 - 8) + (30 - 20) + 15
    assert load.decode_tokens_per_s > 0
    assert load.prefill_tokens_per_s > 0
    assert load.rss_bytes > 10_000_000


def test_measured_time_over_predicted_time() -> None:
    shapes: list[StepShape] = []

    def predict_step_s(shape: StepShape) -> float:
        shapes.append(shape)
        return 1e-9

    engine = engine_of(predict_step_s=predict_step_s, token_budget=8)
    engine.add(request("a", [1] * 6))
    engine.step()
    engine.add(request("b", [2] * 20))
    engine.step()
    engine.step()
    assert shapes == [
        StepShape(decode_sequences=0, kv_tokens=0, prefill_tokens=6),
        StepShape(decode_sequences=1, kv_tokens=7, prefill_tokens=7),
        StepShape(decode_sequences=1, kv_tokens=8, prefill_tokens=7, prefill_context_tokens=7),
    ]
    load = engine.load()
    assert load.step_samples == 3
    assert load.step_time_ratio > 1


def test_priorities_reach_the_scheduler() -> None:
    engine = engine_of(max_sequences=1)
    engine.add(request("later", priority=1))
    engine.add(request("sooner", priority=0))
    assert [delta.request_id for delta in engine.step()] == ["sooner"]
