"""Tokens a second of a variant's decodes at batch 1 and at B_best, on an engine of its own; it judges no quality."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from batch_jobs.batch_tuner import MAX_BATCH
from batch_jobs.engine_choice import EngineChoice
from cluster.engine_spec import EngineSpec
from cluster.request import Engine, GenerationRequest, SamplingParams

PROMPT_TOKENS, OUTPUT_TOKENS = 64, 64
REPEATS = 3
"""The median counts."""
SPEED_STEPS = 2
"""What measure_speed says before its result: a batch is done."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeedTask:
    spec: EngineSpec
    """With room for the larger batch."""
    token_ids: list[int]
    """A text, of which the prompts are pieces: what int8 does depends on the outliers of real activations."""
    best_batch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """Generated tokens/s of all sequences together while every one of them decodes."""

    batch_1: float
    best: float
    best_batch: int


def speed_task(choice: EngineChoice, token_ids: list[int]) -> SpeedTask:
    """At the batch that the cost model calls best for sequences of the length that all of them grow to together."""
    length = PROMPT_TOKENS + OUTPUT_TOKENS
    best = choice.cost_model.best_batch(
        length,
        kv_capacity_tokens=choice.spec.kv_capacity_tokens,
        max_sequences=MAX_BATCH,
        block_size=choice.spec.block_size,
    )
    spec = replace(choice, spec=replace(choice.spec, max_context=length)).spec_for_batch(best.batch, length)
    return SpeedTask(spec=replace(spec, prefix_caching=False), token_ids=token_ids, best_batch=best.batch)


def measure_speed(task: SpeedTask) -> Iterator[Speed | None]:
    """None for each of the two batches as it is done, then the result."""
    from engine.engine import build_engine  # torch: only in the process that measures

    engine = build_engine(task.spec)
    rates: dict[int, float] = {}
    for batch in (1, task.best_batch):
        prompts = _prompts(task.token_ids, batch)
        _decode_s(engine, prompts, 4)  # a first step of a size records or captures it
        seconds = statistics.median(_decode_s(engine, prompts, OUTPUT_TOKENS) for _ in range(REPEATS))
        rates[batch] = batch * (OUTPUT_TOKENS - 1) / seconds
        yield None
    yield Speed(batch_1=rates[1], best=rates[task.best_batch], best_batch=task.best_batch)


def _prompts(token_ids: Sequence[int], batch: int) -> list[list[int]]:
    """Pieces of the text from different places; of a text too short for that, the same tokens more than once."""
    stride = max(1, len(token_ids) // batch)
    return [
        [token_ids[(row * stride + index) % len(token_ids)] for index in range(PROMPT_TOKENS)] for row in range(batch)
    ]


def _decode_s(engine: Engine, prompts: list[list[int]], output_tokens: int) -> float:
    """Seconds from the step in which the last sequence got its first token to the end."""
    sampling = SamplingParams(max_tokens=output_tokens, temperature=0.0, ignore_eos=True)
    for number, token_ids in enumerate(prompts):
        request = GenerationRequest(request_id=str(number), prompt_token_ids=token_ids, sampling=sampling)
        verdict = engine.add(request)
        if not verdict.admitted:
            raise RuntimeError(f"the engine refuses a batch of {len(prompts)}: {verdict.reason}")
    waiting = {str(number) for number in range(len(prompts))}
    while waiting:
        waiting -= {delta.request_id for delta in engine.step() if delta.token_ids}
    started_s, generated = time.perf_counter(), 0
    while engine.has_work:
        generated += sum(len(delta.token_ids) for delta in engine.step())
    seconds = time.perf_counter() - started_s
    # Sequences that prefilled first are some tokens ahead: scaled to the tokens of a batch in step.
    return seconds * len(prompts) * (output_tokens - 1) / generated
