"""Greedy tokens of the GPU's engine against the reference path: PyTorch alone, fp32 activations, no graphs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cluster.engine_spec import EngineSpec
from cluster.request import GenerationRequest, SamplingParams, TokenLogprob
from cluster.variants import Variant
from engine.engine import Engine, StepRunner


def spec_of(folder: Path, device: str, variant: Variant, **changes: object) -> EngineSpec:
    values: dict[str, object] = {
        "replica_id": "test",
        "checkpoint": str(folder),
        "variant": variant,
        "kv_capacity_tokens": 1024,
        "kv_dtype": "fp32" if variant.dtype == "fp32" else "bf16",
        "max_context": 512,
        "max_sequences": 8,
        "token_budget": 64,
        "device": device,
    }
    return EngineSpec(**(values | changes))  # type: ignore[arg-type]


def generate(spec: EngineSpec, runner: StepRunner, prompts: Sequence[list[int]], num_tokens: int) -> list[list[int]]:
    """All at once, through the engine: batches, chunks, lookahead."""
    engine = Engine(spec, runner)
    sampling = SamplingParams(max_tokens=num_tokens, temperature=0.0, ignore_eos=True)
    for index, prompt in enumerate(prompts):
        request = GenerationRequest(request_id=str(index), prompt_token_ids=prompt, sampling=sampling)
        assert engine.add(request).admitted
    outputs: list[list[int]] = [[] for _ in prompts]
    while engine.has_work:
        for delta in engine.step():
            assert delta.error is None, delta.error
            outputs[int(delta.request_id)] += delta.token_ids
    assert engine.load().kv_tokens_used == 0
    return outputs


def gaps(spec: EngineSpec, reference: StepRunner, prompt: list[int], output: list[int]) -> list[float]:
    """By how much the reference likes its own next token more than the one that was drawn, for each of `output`."""
    return [found.top[0][1] - found.logprob for found in reference_logprobs(spec, reference, prompt, output)]


def reference_logprobs(
    spec: EngineSpec, reference: StepRunner, prompt: list[int], output: list[int]
) -> list[TokenLogprob]:
    """Of each token of `output`, with the reference's own choice beside it."""
    engine = Engine(spec, reference)
    sampling = SamplingParams(max_tokens=1, temperature=0.0, ignore_eos=True, prompt_logprobs=1)
    request = GenerationRequest(request_id="r", prompt_token_ids=prompt + output, sampling=sampling)
    assert engine.add(request).admitted
    deltas = []
    while engine.has_work:
        deltas += engine.step()
    logprobs = deltas[0].prompt_logprobs
    assert logprobs is not None
    return [found for found in logprobs[len(prompt) :] if found is not None]
