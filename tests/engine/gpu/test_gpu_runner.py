"""The GPU's engine gives the reference path's tokens: here on small models, by Triton's interpreter where there is no
GPU; on the GPU also the embedded model and a model as wide as Llama-3.1-8B, with graphs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from cluster.request import GenerationRequest, SamplingParams
from cluster.variants import Variant
from engine.engine import Engine
from engine.gpu.runner import GpuRunner
from engine.runner import Runner
from tests.engine.gpu.conftest import write_checkpoint
from tests.engine.gpu.greedy import gaps, generate, spec_of

BF16 = Variant(name="bf16")
FP32 = Variant(name="fp32", dtype="fp32")


def prompts(vocab: int, *lengths: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(7)
    return [torch.randint(3, vocab, (length,), generator=generator).tolist() for length in lengths]


def ready(spec, *, graphs: bool = False) -> GpuRunner:
    runner = GpuRunner(spec)
    runner.allocate(spec.kv_capacity_tokens // spec.block_size)
    if graphs:
        runner.capture()
    return runner


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("tiny"))


@pytest.mark.parametrize("variant", [FP32, BF16], ids=lambda variant: variant.name)
def test_greedy_tokens_are_the_references(tiny: Path, device: str, variant: Variant) -> None:
    """Lengths that end inside a block, at its end, and one that takes two chunks of the budget."""
    spec = spec_of(tiny, device, variant)
    many = prompts(250, 1, 16, 37, 70)
    outputs = generate(spec, ready(spec), many, 5)
    reference = Runner(spec_of(tiny, "cpu", variant))
    bound = 1e-3 if variant is FP32 else 0.05
    for prompt, output in zip(many, outputs, strict=True):
        assert len(output) == 5
        assert max(gaps(spec, reference, prompt, output)) < bound


def test_qwen3_norms_its_heads(tmp_path: Path, device: str) -> None:
    folder = write_checkpoint(tmp_path, architectures=["Qwen3ForCausalLM"], model_type="qwen3")
    spec = spec_of(folder, device, FP32)
    many = prompts(250, 19)
    (output,) = generate(spec, ready(spec), many, 3)
    assert max(gaps(spec, Runner(spec_of(folder, "cpu", FP32)), many[0], output)) < 1e-3


def test_what_few_requests_ask_for(tiny: Path, device: str) -> None:
    """Log-probabilities, a ban and a penalty: on the reference path the same."""
    asked = SamplingParams(
        max_tokens=3,
        temperature=0.0,
        ignore_eos=True,
        logprobs=2,
        logit_bias={5: -100.0},
        repetition_penalty=1.3,
        frequency_penalty=0.4,
        prompt_logprobs=1,
    )
    (prompt,) = prompts(250, 21)
    found = []
    for runner, where in ((ready(spec_of(tiny, device, FP32)), device), (Runner(spec_of(tiny, "cpu", FP32)), "cpu")):
        engine = Engine(spec_of(tiny, where, FP32), runner)
        engine.add(GenerationRequest(request_id="r", prompt_token_ids=prompt, sampling=asked))
        deltas = []
        while engine.has_work:
            deltas += engine.step()
        found.append(deltas)
    for ours, theirs in zip(*found, strict=True):
        assert ours.token_ids == theirs.token_ids
        assert ours.logprobs[0].logprob == pytest.approx(theirs.logprobs[0].logprob, abs=1e-3)
        assert [token for token, _ in ours.logprobs[0].top] == [token for token, _ in theirs.logprobs[0].top]
    ours, theirs = (deltas[0].prompt_logprobs for deltas in found)
    for one, other in zip(ours[1:], theirs[1:], strict=True):
        assert one.logprob == pytest.approx(other.logprob, abs=1e-3)


def test_a_seed_gives_the_same_text_alone_and_in_a_batch(tiny: Path, device: str) -> None:
    spec = spec_of(tiny, device, FP32)
    runner = ready(spec)
    many = prompts(250, 9, 12, 17)
    sampling = SamplingParams(max_tokens=4, temperature=0.9, top_p=0.8, seed=11, ignore_eos=True)

    def run(*chosen: int) -> dict[str, list[int]]:
        engine = Engine(spec, runner)
        for index in chosen:
            request = GenerationRequest(request_id=str(index), prompt_token_ids=many[index], sampling=sampling)
            engine.add(request)
        texts: dict[str, list[int]] = {}
        while engine.has_work:
            for delta in engine.step():
                texts.setdefault(delta.request_id, []).extend(delta.token_ids)
        return texts

    assert run(1)["1"] == run(0, 1, 2)["1"]


@pytest.mark.gpu
@pytest.mark.parametrize("method", ["none", "fp8", "int8", "nf4"])
def test_graphs_give_what_the_plain_launches_give(tmp_path: Path, method: str) -> None:
    folder = write_checkpoint(
        tmp_path, hidden_size=512, intermediate_size=1024, num_attention_heads=8, num_key_value_heads=2
    )
    spec = spec_of(folder, "cuda", Variant(name=method, method=method), kv_capacity_tokens=8192, max_sequences=24)
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
def test_the_embedded_model(smollm2: Path) -> None:
    spec = spec_of(smollm2, "cuda", BF16, kv_capacity_tokens=8192, max_sequences=32)
    many = prompts(49152, *range(5, 105, 5))
    outputs = generate(spec, ready(spec, graphs=True), many, 32)
    reference = Runner(spec)
    found = [gap for prompt, output in zip(many, outputs, strict=True) for gap in gaps(spec, reference, prompt, output)]
    assert max(found) < 0.5
    assert sum(gap == 0 for gap in found) >= 0.9 * len(found)
