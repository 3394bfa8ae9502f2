"""The engine on SmolLM2-135M: greedy text equals transformers'; no neighbour, chunk or preemption changes a text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

from cluster.engine_spec import EngineSpec
from cluster.request import GenerationRequest, SamplingParams, TokenDelta
from cluster.variants import Variant
from engine.checkpoint import ensure_checkpoint
from engine.engine import Engine
from engine.sequence import ChunkResult, ScheduledChunk
from engine.text import TextCodec
from engine.wire import joined

NUM_TOKENS = 8

LENGTHS = (1, 2, 3, 5, 8, 12, 15, 16, 17, 20, 24, 31, 32, 33, 40, 47, 55, 64, 81, 130)

PASSAGE = """The lighthouse stood at the end of the long stone pier, and every evening the keeper climbed its hundred
and twelve steps with a lantern in one hand and a book in the other. In winter the waves came over the wall and the
windows were white with salt. He wrote down the weather, the ships that passed, and once a whale. "What do you read up
there?" the children asked him. Physics, he said: why the sky is blue, how far away the stars are, what light is made
of. In 1905 Einstein showed that light comes in quanta of energy E = h f, and for this he was given the Nobel prize in
1921. A photon of green light carries 3.7e-19 joules. The keeper worked out how many his lamp sent over the sea each
second, and then he went to bed. In the morning there was bread, coffee, and a letter from the harbour office: the
lamp would be replaced by an automatic one, "def main(): print('hello')" and all, before the end of the year. He
thought about it for a while. Then he took his book and walked home along the beach, where the tide had left shells,
rope, and a bottle."""

VARIANTS = {
    "fp32": Variant(name="fp32", dtype="fp32"),
    "bf16": Variant(name="bf16"),
    "int8": Variant(name="int8", method="int8"),
    "nf4": Variant(name="nf4", method="nf4"),
}


@cache
def checkpoint() -> Path:
    return ensure_checkpoint("embedded:smollm2-135m")


@cache
def codec() -> TextCodec:
    return TextCodec(checkpoint())


@cache
def prompts() -> list[list[int]]:
    """Twenty lengths; each begins elsewhere in the passage, so that none is a prefix of another."""
    token_ids = codec().encode(PASSAGE)
    return [token_ids[3 * index : 3 * index + length] for index, length in enumerate(LENGTHS)]


def spec(variant: str, **changes: object) -> EngineSpec:
    values: dict[str, object] = {
        "replica_id": f"{variant}-0",
        "checkpoint": str(checkpoint()),
        "variant": VARIANTS[variant],
        "kv_capacity_tokens": 4096,
        "kv_dtype": "fp32" if variant == "fp32" else "bf16",
        "max_context": 512,
        "token_budget": 256,
    }
    return EngineSpec(**(values | changes))


@cache
def runner(variant: str):
    from engine.runner import Runner

    return Runner(spec(variant))


class FewerBlocks:
    """The real runner, of whose cache only the first blocks are used."""

    def __init__(self, whole, num_blocks: int) -> None:
        self._whole = whole
        self.num_blocks = num_blocks
        self.vocab_size = whole.vocab_size
        self.eos_token_ids = whole.eos_token_ids

        self.lookahead = whole.lookahead

    def launch(self, chunks: list[ScheduledChunk]) -> Callable[[], list[ChunkResult]]:
        return self._whole.launch(chunks)


def engine_of(variant: str, num_blocks: int | None = None, **changes: object) -> Engine:
    """A fresh engine over the loaded model: nothing of an earlier test's cache is known to it."""
    whole = runner(variant)
    return Engine(spec(variant, **changes), FewerBlocks(whole, num_blocks or whole.num_blocks), codec())


def greedy(index: int, priority: int = 0) -> GenerationRequest:
    return GenerationRequest(
        request_id=str(index),
        prompt_token_ids=prompts()[index],
        sampling=SamplingParams(max_tokens=NUM_TOKENS, temperature=0.0, ignore_eos=True),
        priority=priority,
    )


def steps(engine: Engine, at_most: int, whole: dict[int, TokenDelta] | None = None) -> dict[int, TokenDelta]:
    """What so many steps bring, by request; appended to what earlier ones brought."""
    whole = {} if whole is None else whole
    for _ in range(at_most):
        if not engine.has_work:
            assert engine.load().kv_tokens_used == 0
            break
        for delta in engine.step():
            index = int(delta.request_id)
            whole[index] = joined(whole[index], delta) if index in whole else delta
    return whole


def run(engine: Engine, requests: Sequence[GenerationRequest]) -> dict[int, TokenDelta]:
    for request in requests:
        assert engine.add(request).admitted
    return steps(engine, 1000)


def tokens(deltas: dict[int, TokenDelta]) -> list[list[int]]:
    return [deltas[index].token_ids for index in sorted(deltas)]


def all_greedy() -> list[GenerationRequest]:
    return [greedy(index) for index in range(len(LENGTHS))]


@cache
def alone(variant: str) -> list[list[int]]:
    """Each prompt by itself in an empty engine, in one chunk."""
    return [run(engine_of(variant), [request])[index].token_ids for index, request in enumerate(all_greedy())]


@pytest.fixture(scope="module")
def reference():
    import torch
    from transformers import AutoModelForCausalLM

    # Where something else has the other core, two threads wait for each other at every barrier: ten times slower.
    torch.set_num_threads(1)
    return AutoModelForCausalLM.from_pretrained(checkpoint(), dtype=torch.float32)


@pytest.fixture(scope="module")
def transformers_output(reference) -> list[list[int]]:
    """Greedy tokens by one pass over prompt and answer: if the pass agrees with every token of an answer, then so does
    `generate`, by induction, and it takes an eighth of the time."""
    import torch

    outputs = []
    for prompt, answer in zip(prompts(), alone("fp32"), strict=True):
        with torch.inference_mode():
            logits = reference(torch.tensor([prompt + answer[:-1]])).logits[0]
        outputs.append(logits[len(prompt) - 1 :].argmax(dim=1).tolist())
    return outputs


def batched(variant: str) -> list[list[int]]:
    return tokens(run(engine_of(variant), all_greedy()))


def with_prefix_hits(variant: str) -> list[list[int]]:
    engine = engine_of(variant)
    first = run(engine, all_greedy())
    second = run(engine, all_greedy())
    assert all(delta.cached_tokens == 0 for delta in first.values())
    expected = [(length - 1) // 16 * 16 for length in LENGTHS]
    assert [second[index].cached_tokens for index in range(len(LENGTHS))] == expected
    return tokens(second)


def chunked(variant: str) -> list[list[int]]:
    return tokens(run(engine_of(variant, token_budget=24), all_greedy()))


def preempted(variant: str) -> list[list[int]]:
    """In a small cache, when an urgent request of nine blocks comes in the middle."""
    engine = engine_of(variant, num_blocks=20)
    last = len(LENGTHS) - 1
    for index in range(last):
        engine.add(greedy(index))
    whole = steps(engine, 4)
    engine.add(greedy(last, priority=-1))
    whole = steps(engine, 1000, whole)
    assert engine.load().preemptions > 0
    return tokens(whole)


def beside_an_abort(variant: str) -> list[list[int]]:
    engine = engine_of(variant)
    for request in all_greedy():
        engine.add(request)
    doomed = GenerationRequest(
        request_id="99", prompt_token_ids=prompts()[18][:50], sampling=SamplingParams(max_tokens=100)
    )
    engine.add(doomed)
    whole = steps(engine, 4)
    engine.abort("99")
    whole = steps(engine, 1000, whole)
    assert whole.pop(99).finish_reason == "abort"
    return tokens(whole)


WAYS = [alone, batched, with_prefix_hits, chunked, preempted, beside_an_abort]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: getattr(way, "__name__", "alone"))
def test_greedy_equals_transformers_generate(
    way: Callable[[str], list[list[int]]], transformers_output: list[list[int]]
) -> None:
    assert way("fp32") == transformers_output


def test_a_few_by_generate_itself(reference) -> None:
    import torch

    for index in (0, 7, 19):
        ids = torch.tensor([prompts()[index]])
        options = {"max_new_tokens": NUM_TOKENS, "do_sample": False, "eos_token_id": None}
        generated = reference.generate(ids, attention_mask=torch.ones_like(ids), **options)
        assert generated[0, ids.shape[1] :].tolist() == alone("fp32")[index]


FEW = (2, 7, 9, 12, 16, 18)


def everything_at_once(variant: str, few: list[GenerationRequest]) -> dict[int, TokenDelta]:
    """Chunks that end anywhere, prefix hits on own and others' blocks, preemption by an urgent neighbour, its abort."""
    engine = engine_of(variant, num_blocks=14, token_budget=24)
    run(engine, few[:3])
    for request in few:
        engine.add(request)
    whole = steps(engine, 5)
    urgent = GenerationRequest(
        request_id="99", prompt_token_ids=prompts()[19], sampling=SamplingParams(max_tokens=60), priority=-1
    )
    engine.add(urgent)
    whole = steps(engine, 8, whole)
    engine.abort("99")
    whole = steps(engine, 1000, whole)
    del whole[99]
    load = engine.load()
    assert load.preemptions > 0
    assert load.prefix_hit_tokens > 0
    return whole


@pytest.mark.parametrize("variant", ["bf16", "int8", "nf4"])
def test_greedy_is_the_same_alone_and_in_any_batch(variant: str) -> None:
    few = [greedy(index) for index in FEW]
    by_itself = tokens({index: run(engine_of(variant), [greedy(index)])[index] for index in FEW})
    assert tokens(run(engine_of(variant), few)) == by_itself
    assert tokens(everything_at_once(variant, few)) == by_itself


def sampled(index: int) -> GenerationRequest:
    """Each with another mix of parameters."""
    params = SamplingParams(
        max_tokens=NUM_TOKENS,
        temperature=0.7 + index / 20,
        top_p=0.9 if index % 2 else 1.0,
        top_k=40 if index % 3 == 0 else 0,
        repetition_penalty=1.2 if index % 4 == 0 else 1.0,
        frequency_penalty=0.5 if index % 5 == 0 else 0.0,
        seed=1000 + index,
        ignore_eos=True,
        logprobs=2,
    )
    return GenerationRequest(request_id=str(index), prompt_token_ids=prompts()[index], sampling=params)


def untimed(delta: TokenDelta) -> TokenDelta:
    return replace(delta, queued_s=None, prefill_s=None)


@pytest.mark.parametrize("variant", ["bf16", "int8"])
def test_a_seed_gives_the_same_text_and_logprobs_alone_and_in_any_batch(variant: str) -> None:
    few = [sampled(index) for index in FEW]
    by_itself = {index: run(engine_of(variant), [sampled(index)])[index] for index in FEW}
    together = run(engine_of(variant), few)
    stressed = everything_at_once(variant, few)
    for index in FEW:
        assert untimed(together[index]) == untimed(by_itself[index])
        assert stressed[index].token_ids == by_itself[index].token_ids
        assert stressed[index].logprobs == by_itself[index].logprobs


def test_without_a_seed_texts_differ() -> None:
    engine = engine_of("bf16")
    prompt = prompts()[9]
    requests = [
        GenerationRequest(request_id=str(index), prompt_token_ids=prompt, sampling=SamplingParams(max_tokens=8))
        for index in range(3)
    ]
    assert len({tuple(delta.token_ids) for delta in run(engine, requests).values()}) > 1


def test_prompt_logprobs_are_those_of_a_forward_pass(reference) -> None:
    import torch

    prompt = prompts()[12]
    sampling = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=1, logprobs=1)
    request = GenerationRequest(request_id="0", prompt_token_ids=prompt, sampling=sampling)
    delta = run(engine_of("fp32", token_budget=24), [request])[0]
    with torch.inference_mode():
        expected = reference(torch.tensor([prompt])).logits[0].log_softmax(dim=1)
    assert delta.prompt_logprobs is not None
    assert delta.prompt_logprobs[0] is None
    for position, entry in enumerate(delta.prompt_logprobs[1:], 1):
        assert entry is not None
        assert entry.token_id == prompt[position]
        assert entry.logprob == pytest.approx(float(expected[position - 1, prompt[position]]), abs=1e-3)
        assert entry.top[0][0] == int(expected[position - 1].argmax())
    assert delta.logprobs is not None
    assert delta.logprobs[0].logprob == pytest.approx(float(expected[-1].max()), abs=1e-3)


def test_a_stop_string_in_a_chat() -> None:
    messages = [{"role": "user", "content": "Count from one to ten."}]
    sampling = SamplingParams(max_tokens=60, temperature=0.0, stop=("3", "three"))
    request = GenerationRequest(request_id="0", prompt_token_ids=codec().encode_chat(messages), sampling=sampling)
    delta = run(engine_of("bf16"), [request])[0]
    assert delta.finish_reason == "stop"
    assert codec().decode(delta.token_ids).rstrip().endswith(("3", "three"))
