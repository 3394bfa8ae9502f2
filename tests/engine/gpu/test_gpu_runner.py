"""The GPU's engine gives the reference path's tokens: here on small models, by Triton's interpreter where there is no
GPU; on the GPU also the embedded model and a model as wide as Llama-3.1-8B, with graphs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cluster.engine_spec import EngineSpec
from cluster.errors import UserError
from cluster.request import GenerationRequest, SamplingParams, TokenDelta
from cluster.variants import Variant
from engine.checkpoint import ensure_checkpoint
from engine.engine import Engine
from engine.gpu.runner import GpuRunner
from engine.runner import Runner
from tests.engine.gpu.conftest import write_checkpoint
from tests.engine.gpu.greedy import gaps, generate, reference_logprobs, spec_of

BF16 = Variant(name="bf16")
FP32 = Variant(name="fp32", dtype="fp32")
VOCAB = 41
TIGHT = {"kv_capacity_tokens": 256, "max_sequences": 4, "token_budget": 16}


def prompts(vocab: int, *lengths: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(7)
    return [torch.randint(3, vocab, (length,), generator=generator).tolist() for length in lengths]


def ready(spec: EngineSpec, *, graphs: bool = False) -> GpuRunner:
    runner = GpuRunner(spec)
    runner.allocate(spec.kv_capacity_tokens // spec.block_size)
    if graphs:
        runner.capture()
    return runner


def finish(engine: Engine, *requests: GenerationRequest) -> dict[str, list[TokenDelta]]:
    for request in requests:
        assert engine.add(request).admitted
    deltas: dict[str, list[TokenDelta]] = {request.request_id: [] for request in requests}
    while engine.has_work:
        for delta in engine.step():
            assert delta.error is None, delta.error
            deltas[delta.request_id].append(delta)
    return deltas


def text_of(deltas: list[TokenDelta]) -> list[int]:
    return [token for delta in deltas for token in delta.token_ids]


def assert_greedy(
    spec: EngineSpec, reference: Runner, prompt: list[int], deltas: list[TokenDelta], bound: float
) -> None:
    """The reference's choice but for ties within `bound`, and its log-probability: a wrong position moves that long
    before it changes the choice."""
    for delta, expected in zip(deltas, reference_logprobs(spec, reference, prompt, text_of(deltas)), strict=True):
        assert expected.top[0][1] - expected.logprob < bound
        assert delta.logprobs[0].logprob == pytest.approx(expected.logprob, abs=bound)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("tiny"))


@pytest.mark.parametrize(("variant", "bound", "num_tokens"), [(FP32, 1e-3, 2), (BF16, 0.05, 2)], ids=["fp32", "bf16"])
def test_greedy_tokens_are_the_references(
    tiny: Path, device: str, variant: Variant, bound: float, num_tokens: int
) -> None:
    """Prompts of two chunks of the budget, to a block's end, and of one token. The first decodes by itself, in the form
    for one row, while the others' prompts are computed, and then in their batch."""
    spec = spec_of(tiny, device, variant, **TIGHT)
    sampling = SamplingParams(max_tokens=num_tokens, temperature=0.0, ignore_eos=True, logprobs=0)
    requests = [
        GenerationRequest(request_id=str(index), prompt_token_ids=prompt, sampling=sampling)
        for index, prompt in enumerate(prompts(VOCAB, 21, 16, 1))
    ]
    found = finish(Engine(spec, ready(spec)), *requests)
    reference = Runner(spec_of(tiny, "cpu", variant))
    for request in requests:
        assert len(found[request.request_id]) == num_tokens
        assert_greedy(spec, reference, request.prompt_token_ids, found[request.request_id], bound)


def test_a_prefix_that_another_request_left_is_read_from_the_cache(tiny: Path, device: str) -> None:
    spec = spec_of(tiny, device, FP32, **TIGHT)
    first, second = prompts(VOCAB, 33, 36)
    second[:32] = first[:32]
    engine = Engine(spec, ready(spec))
    sampling = SamplingParams(max_tokens=1, temperature=0.0, ignore_eos=True, logprobs=0)
    finish(engine, GenerationRequest(request_id="first", prompt_token_ids=first, sampling=sampling))
    request = GenerationRequest(request_id="second", prompt_token_ids=second, sampling=replace(sampling, max_tokens=2))
    deltas = finish(engine, request)["second"]
    assert deltas[0].cached_tokens == 32
    assert_greedy(spec, Runner(spec_of(tiny, "cpu", FP32)), second, deltas, 1e-3)


def test_qwen3_norms_its_heads(tmp_path: Path, device: str) -> None:
    folder = write_checkpoint(tmp_path, architectures=["Qwen3ForCausalLM"], model_type="qwen3", num_hidden_layers=1)
    spec = spec_of(folder, device, FP32, **TIGHT)
    many = prompts(VOCAB, 5, 7)
    reference = Runner(spec_of(folder, "cpu", FP32))
    for prompt, output in zip(many, generate(spec, ready(spec), many, 3), strict=True):
        assert max(gaps(spec, reference, prompt, output)) < 1e-3


def test_what_few_requests_ask_for(tiny: Path, device: str) -> None:
    """Log-probabilities, bans, penalties and min_tokens, beside a request that asks for none: as on the reference
    path."""
    asked = SamplingParams(
        max_tokens=3,
        min_tokens=2,
        stop_token_ids=(7,),
        temperature=0.0,
        ignore_eos=True,
        logprobs=2,
        logit_bias={7: 50.0, 5: -100.0},
        repetition_penalty=1.3,
        frequency_penalty=0.4,
        presence_penalty=0.2,
        prompt_logprobs=1,
    )
    plain = SamplingParams(max_tokens=3, temperature=0.0, ignore_eos=True)
    one, other = prompts(VOCAB, 5, 13)
    found = []
    for where, build in ((device, ready), ("cpu", Runner)):
        spec = spec_of(tiny, where, FP32, **TIGHT)
        requests = [
            GenerationRequest(request_id="plain", prompt_token_ids=one, sampling=plain),
            GenerationRequest(request_id="asked", prompt_token_ids=other, sampling=asked),
        ]
        found.append(finish(Engine(spec, build(spec)), *requests))
    ours, theirs = found
    assert text_of(ours["plain"]) == text_of(theirs["plain"])
    assert text_of(ours["asked"]) == text_of(theirs["asked"])
    assert [token == 7 for token in text_of(ours["asked"])] == [False, False, True]
    assert ours["asked"][-1].finish_reason == "stop"
    for our, their in zip(ours["asked"], theirs["asked"], strict=True):
        assert our.logprobs[0].logprob == pytest.approx(their.logprobs[0].logprob, abs=1e-3)
        assert [token for token, _ in our.logprobs[0].top] == [token for token, _ in their.logprobs[0].top]
    our_prompt, their_prompt = (deltas["asked"][0].prompt_logprobs for deltas in found)
    assert len(our_prompt) == len(other)
    for our, their in zip(our_prompt[1:], their_prompt[1:], strict=True):
        assert our.token_id == their.token_id
        assert our.logprob == pytest.approx(their.logprob, abs=1e-3)


def test_a_seed_gives_the_same_text_alone_in_a_batch_and_after_a_preemption(tmp_path: Path, device: str) -> None:
    """Three blocks: when both need a second one, the later request gives up its own and begins again."""
    folder = write_checkpoint(tmp_path, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1)
    spec = spec_of(folder, device, FP32, **(TIGHT | {"token_budget": 32}))
    runner = ready(spec)
    sampling = SamplingParams(max_tokens=4, temperature=0.9, top_p=0.8, seed=11, ignore_eos=True)
    first, second = prompts(VOCAB, 15, 15)
    before = GenerationRequest(request_id="before", prompt_token_ids=first, sampling=replace(sampling, max_tokens=3))
    request = GenerationRequest(request_id="drawn", prompt_token_ids=second, sampling=sampling)
    alone = text_of(finish(Engine(spec, runner), request)["drawn"])
    in_a_batch = text_of(finish(Engine(spec, runner), before, request)["drawn"])
    runner.allocate(3)
    engine = Engine(spec, runner)
    preempted = text_of(finish(engine, before, request)["drawn"])
    assert engine.load().preemptions == 1
    assert len(set(alone)) > 1
    assert in_a_batch == alone
    assert preempted == alone


@pytest.mark.gpu
@pytest.mark.parametrize("method", ["none", "fp8", "int8", "nf4"])
def test_graphs_give_what_the_plain_launches_give(tmp_path: Path, method: str) -> None:
    folder = write_checkpoint(
        tmp_path,
        std=0.08,
        hidden_size=512,
        intermediate_size=1024,
        num_attention_heads=8,
        num_key_value_heads=2,
        head_dim=64,
        vocab_size=250,
    )
    # LLM.int8's outlier columns are those of the whole batch, a graph's rows that only fill it up included: which
    # columns are multiplied in floating point, and so the last bit, depends on them.
    variant = Variant(name=method, method=method, outlier_threshold=None)
    spec = spec_of(folder, "cuda", variant, kv_capacity_tokens=8192, max_sequences=24)
    many = prompts(250, *range(3, 23))
    assert generate(spec, ready(spec, graphs=True), many, 40) == generate(spec, ready(spec), many, 40)


@pytest.mark.gpu
@pytest.mark.parametrize("batch", [1, 6])
def test_a_model_as_wide_as_llama_8b(tmp_path: Path, batch: int) -> None:
    folder = write_checkpoint(
        tmp_path,
        std=0.02,
        hidden_size=4096,
        intermediate_size=14336,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=128,
        vocab_size=8192,
        rope_theta=500000.0,
    )
    spec = spec_of(folder, "cuda", BF16, kv_capacity_tokens=4096)
    many = prompts(8192, *[33, 100, 64, 5, 17, 80][:batch])
    outputs = generate(spec, ready(spec, graphs=True), many, 24)
    reference = Runner(spec)
    for prompt, output in zip(many, outputs, strict=True):
        found = gaps(spec, reference, prompt, output)
        assert max(found) < 0.05
        assert sum(gap == 0 for gap in found) >= 0.9 * len(found)


@pytest.mark.gpu
def test_the_embedded_model() -> None:
    try:
        folder = ensure_checkpoint("embedded:smollm2-135m")
    except UserError as error:
        pytest.skip(f"the embedded model cannot be had: {error}")
    spec = spec_of(folder, "cuda", BF16, kv_capacity_tokens=8192, max_sequences=32)
    many = prompts(49152, *range(5, 105, 5))
    outputs = generate(spec, ready(spec, graphs=True), many, 32)
    reference = Runner(spec)
    found = [gap for prompt, output in zip(many, outputs, strict=True) for gap in gaps(spec, reference, prompt, output)]
    assert max(found) < 0.5
    assert sum(gap == 0 for gap in found) >= 0.9 * len(found)
