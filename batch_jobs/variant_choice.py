"""Which variant a job takes where none is named: the cheapest that is good enough for its rows; it starts no engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from batch_jobs.batch_probe import Work
from batch_jobs.batch_tuner import LengthSample, choose_batch
from batch_jobs.engine_choice import EngineChoice
from cluster.errors import UserError
from cluster.slo import meets_floor

AUTO = "auto"


@dataclass(frozen=True, slots=True, kw_only=True)
class VariantChoice:
    engine: EngineChoice
    arithmetic: str | None = None
    """None where the variant was named."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Cost:
    engine: EngineChoice
    row_s: float
    """Seconds of a whole accelerator for a typical row, its prompt and its output."""
    words: str


def choose_variant(
    engines: Sequence[EngineChoice], sample: LengthSample, output_tokens: int, num_rows: int, min_quality: float
) -> VariantChoice:
    """`engines`: of each variant that could run the rows. UserError where none is good enough."""
    fitting = [engine for engine in engines if meets_floor(engine.spec.variant.quality, min_quality)]
    others = [_quality(engine) for engine in engines if engine not in fitting]
    if not fitting:
        raise UserError(
            f"--min-quality {min_quality:g}: no variant has it ({', '.join(others)}); ask for less, or measure one"
            " with `quantfleet evaluate --register`"
        )
    work = Work.of(sample, output_tokens)
    costs = sorted(
        (_cost(engine, sample, work, num_rows) for engine in fitting), key=lambda cost: (cost.row_s, cost.words)
    )
    kind, figures = costs[0].engine.cost_model.accelerator.kind, "; ".join(cost.words for cost in costs)
    left_out = f"; left out: {', '.join(others)}" if others else ""
    arithmetic = (
        f"least {kind}-s a row of {work.prompt_tokens} + {work.output_tokens} tokens (mean of {sample.num_rows} rows)"
        f" with quality>={min_quality:g}: {figures}{left_out}"
    )
    return VariantChoice(engine=costs[0].engine, arithmetic=arithmetic)


def check_quality(engine: EngineChoice, min_quality: float) -> None:
    """UserError where the variant that was named, or that the job began with, is below."""
    if not meets_floor(engine.spec.variant.quality, min_quality):
        raise UserError(f"--min-quality {min_quality:g}: {_quality(engine)}; name another, or --variant {AUTO}")


def _cost(engine: EngineChoice, sample: LengthSample, work: Work, num_rows: int) -> _Cost:
    """A step of the batch advances each of its rows by a token; the prompts' steps come on top."""
    choice = choose_batch(engine, sample, work.output_tokens, num_rows)
    prefill_s = engine.cost_model.prefill_s(work.prompt_tokens)
    batch = choice.batch if engine.share is None else -(-choice.batch // engine.share.num_replicas)
    rate = work.tokens_per_s(batch, choice.step_s, prefill_s)
    row_s = engine.spec.share * work.output_tokens / rate
    words = (
        f"{engine.spec.variant.name} {row_s:.3g} = {engine.spec.share:.3g} x {work.output_tokens} / {rate:.0f} tokens/s"
        f" at batch {batch}"
    )
    return _Cost(engine=engine, row_s=row_s, words=words)


def _quality(engine: EngineChoice) -> str:
    variant = engine.spec.variant
    return f"{variant.name} has {'no measured quality' if variant.quality is None else f'{variant.quality:.3g}'}"
