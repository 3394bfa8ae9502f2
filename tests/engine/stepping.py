"""Sequences driven by hand, with blocks dealt out in a shuffled order, for tests of the model and the runner."""

from __future__ import annotations

import random
from collections.abc import Sequence as Items

from cluster.engine_spec import EngineSpec
from cluster.request import GenerationRequest, SamplingParams
from cluster.variants import Variant
from engine.runner import Runner
from engine.sequence import ChunkResult, ScheduledChunk, Sequence

GREEDY = SamplingParams(max_tokens=64, temperature=0.0, ignore_eos=True)
FP32 = Variant(name="fp32", dtype="fp32")
VARIANTS = (
    FP32,
    Variant(name="bf16"),
    Variant(name="int8", method="int8"),
    Variant(name="int8-head", method="int8", head="int8", outlier_threshold=None),
    Variant(name="nf4", method="nf4"),
)


def spec_of(folder: object, variant: Variant = FP32, **changes: object) -> EngineSpec:
    values: dict[str, object] = {
        "replica_id": "test",
        "checkpoint": str(folder),
        "variant": variant,
        "kv_capacity_tokens": 4096,
        "kv_dtype": "fp32" if variant.dtype == "fp32" else "bf16",
        "max_context": 512,
    }
    return EngineSpec(**{**values, **changes})  # type: ignore[arg-type]


class Stepper:
    """A runner and its blocks; `step` does what scheduler and engine do after a step."""

    def __init__(self, runner: Runner, block_size: int = 16) -> None:
        self.runner, self.block_size = runner, block_size
        self._free = list(range(runner.num_blocks))
        random.Random(0).shuffle(self._free)

    def sequence(self, prompt: Items[int], sampling: SamplingParams = GREEDY, seed: int = 0) -> Sequence:
        request = GenerationRequest(request_id="r", prompt_token_ids=list(prompt), sampling=sampling)
        num_blocks = -(-(len(prompt) + sampling.max_tokens) // self.block_size)
        return Sequence(
            request=request,
            token_ids=list(prompt),
            num_prompt_tokens=len(prompt),
            seed=seed,
            arrival=0,
            block_table=[self._free.pop() for _ in range(num_blocks)],
        )

    def release(self, *sequences: Sequence) -> None:
        for sequence in sequences:
            self._free += sequence.block_table

    def step(self, sequences: Items[Sequence], most_tokens: int = 4096) -> list[ChunkResult]:
        chunks = [
            ScheduledChunk.of(sequence, min(most_tokens, sequence.num_uncomputed_tokens)) for sequence in sequences
        ]
        results = self.runner.run(chunks)
        for chunk, result in zip(chunks, results, strict=True):
            chunk.sequence.num_computed_tokens += chunk.num_tokens
            if result.token_id is not None:
                chunk.sequence.token_ids.append(result.token_id)
        return results

    def generate(self, sequence: Sequence, num_tokens: int, most_tokens: int = 4096) -> list[int]:
        while sequence.num_output_tokens < num_tokens:
            self.step([sequence], most_tokens)
        return sequence.token_ids[sequence.num_prompt_tokens :]
