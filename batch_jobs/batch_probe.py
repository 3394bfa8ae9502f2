"""A job's batch size by steps of the real engine around the predicted one; it loads one engine, and runs no rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import sqrt

from batch_jobs.batch_tuner import MAX_BATCH, BatchChoice, LengthSample, slice_rows
from batch_jobs.engine_choice import EngineChoice
from cluster.cost_model import BEST_BATCH_SLACK
from cluster.profile import Profile
from engine.profiling import measured_on
from engine.trial import Trial

STEPS_AROUND = (1 / 2, 1 / sqrt(2), 1.0, sqrt(2), 2.0)
PAYS_FROM_S = 120.0
"""Of a job: the probe takes some 15 s, most of them to load the model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbedBatch:
    """Output tokens/s with the prompts' steps counted in."""

    batch: int
    predicted_tokens_per_s: float
    measured_tokens_per_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """A job's typical row."""

    prompt_tokens: int
    output_tokens: int

    @classmethod
    def of(cls, sample: LengthSample, max_tokens: int) -> Work:
        return cls(prompt_tokens=max(1, round(sample.mean_prompt_tokens)), output_tokens=max_tokens)

    @property
    def context(self) -> int:
        """A sequence holds its prompt and, on average over its life, half of its output."""
        return self.prompt_tokens + self.output_tokens // 2

    def tokens_per_s(self, batch: int, step_s: float, prefill_s: float) -> float:
        return 1 / (step_s / batch + prefill_s / self.output_tokens)


def pays(engine: EngineChoice, work: Work, choice: BatchChoice, num_rows: int) -> bool:
    """Whether the job is predicted to take long enough for a better batch to win back what the probe costs."""
    prefill_s = engine.cost_model.prefill_s(work.prompt_tokens)
    rate = work.tokens_per_s(choice.batch, choice.step_s, prefill_s)
    return num_rows * work.output_tokens / rate > PAYS_FROM_S


def candidates(choice: BatchChoice, engine: EngineChoice, work: Work, num_rows: int) -> list[int]:
    """Around the predicted batch, as far as their KV fits with paging."""
    block_size = engine.spec.block_size
    held = -(-work.context // block_size) * block_size
    most = min(MAX_BATCH, num_rows, max(1, engine.spec.kv_capacity_tokens // held))
    return sorted({min(most, max(1, round(factor * choice.batch))) for factor in STEPS_AROUND})


def probe(engine: EngineChoice, work: Work, batches: Sequence[int], longest_tokens: int) -> list[ProbedBatch]:
    """In a process of its own, on whatever host or GPU this runs."""
    spec = engine.spec_for_batch(max(batches), longest_tokens)
    # A decode more than its context, and room for the step that is timed.
    spec = replace(spec, max_context=max(spec.max_context, work.context + 2), profile_path=None)
    chunk = min(work.prompt_tokens, spec.token_budget)
    trials = [Trial(decodes=batch, context=work.context) for batch in batches]
    return probed(engine, work, batches, measured_on(spec, [*trials, Trial(chunk=chunk)]))


def probed(engine: EngineChoice, work: Work, batches: Sequence[int], measured: Profile) -> list[ProbedBatch]:
    *decode_points, prompt_point = measured.points
    prefill_s = prompt_point.step_s * work.prompt_tokens / prompt_point.shape.prefill_tokens
    model = engine.cost_model
    return [
        ProbedBatch(
            batch=batch,
            predicted_tokens_per_s=work.tokens_per_s(
                batch, model.decode_step_s(batch, work.context), model.prefill_s(work.prompt_tokens)
            ),
            measured_tokens_per_s=work.tokens_per_s(batch, point.step_s, prefill_s),
        )
        for batch, point in zip(batches, decode_points, strict=True)
    ]


def best_of(found: Sequence[ProbedBatch], choice: BatchChoice) -> BatchChoice:
    """The smallest batch within 5 % of the best measured, with what was measured in its arithmetic."""
    most = max(one.measured_tokens_per_s for one in found)
    best = next(one for one in found if one.measured_tokens_per_s >= (1 - BEST_BATCH_SLACK) * most)
    figures = ", ".join(
        f"{one.batch}: {one.measured_tokens_per_s:.0f} ({one.predicted_tokens_per_s:.0f})" for one in found
    )
    return replace(
        choice,
        batch=best.batch,
        slice_rows=slice_rows(best.batch),
        arithmetic=f"{choice.arithmetic}; probed, tokens/s measured (predicted) with prompts: {figures}",
    )
