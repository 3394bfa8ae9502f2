"""Which steps a profile is measured on, and which others it is checked on; it measures none."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable

from cluster.engine_spec import EngineSpec
from engine.trial import Trial

CPU_TRIALS = (
    Trial(decodes=1, context=64),
    Trial(chunk=64),
    Trial(decodes=8, context=64),
    Trial(decodes=8, context=512),
    Trial(chunk=256),
    Trial(decodes=32, context=64),
    Trial(decodes=4, context=64, chunk=64),
    Trial(chunk=64, chunk_context=512),
    Trial(decodes=1, context=512),
    Trial(decodes=2, context=64),
    Trial(decodes=4, context=64),
    Trial(decodes=16, context=64),
    Trial(decodes=16, context=512),
    Trial(decodes=16, context=512, chunk=64),
    Trial(decodes=8, context=64, chunk=128, chunk_context=256),
    Trial(chunk=16),
    Trial(decodes=32, context=256),
    Trial(chunk=512),
    Trial(chunk=32),
    Trial(decodes=8, context=256, chunk=32),
    Trial(decodes=16, context=64, chunk=16),
    Trial(decodes=24, context=128, chunk=32),
    Trial(chunk=32, chunk_context=256),
    Trial(decodes=4, context=512, chunk=48),
    Trial(decodes=8, context=256),
    Trial(decodes=24, context=128),
    Trial(decodes=64, context=64),
)
"""The most telling first: on a machine that is slow, or busy, the last are left out."""

GPU_TRIALS = (
    Trial(decodes=1, context=64),
    Trial(chunk=512),
    Trial(decodes=256, context=512),
    Trial(decodes=32, context=512),
    Trial(chunk=8192),
    Trial(decodes=64, context=2048),
    Trial(decodes=128, context=512, chunk=512),
    Trial(chunk=512, chunk_context=8192),
    Trial(decodes=8, context=512),
    Trial(decodes=1, context=8192),
    Trial(decodes=16, context=8192),
    Trial(decodes=64, context=128),
    Trial(decodes=128, context=1024),
    Trial(decodes=256, context=64),
    Trial(decodes=256, context=1280),
    Trial(decodes=16, context=512),
    Trial(decodes=4, context=2048),
    Trial(chunk=16),
    Trial(chunk=64),
    Trial(chunk=128),
    Trial(chunk=256),
    Trial(chunk=1024),
    Trial(chunk=2048),
    Trial(chunk=4096),
    Trial(chunk=2048, chunk_context=4096),
    Trial(chunk=64, chunk_context=2048),
    Trial(decodes=32, context=512, chunk=512),
    Trial(decodes=32, context=2048, chunk=2048, chunk_context=2048),
    Trial(decodes=8, context=1024, chunk=64),
    Trial(decodes=240, context=512, chunk=2048),
    Trial(decodes=128, context=256, chunk=128),
    Trial(decodes=64, context=1024, chunk=4096),
)
"""To the batches and chunks that a card of 80 GB runs; what does not fit an engine is left out of its profile."""

LEAST_CONTEXT = 48
LEAST_CHUNK = 16


def profile_trials(spec: EngineSpec) -> list[Trial]:
    """ValueError where no step of an engine of `spec` tells anything."""
    trials = [trial for trial in (GPU_TRIALS if spec.device == "cuda" else CPU_TRIALS) if _can_occur(trial, spec)]
    if not trials:
        raise ValueError(f"max_context {spec.max_context}, token_budget {spec.token_budget}: too small to measure")
    return trials


def held_out_trials(spec: EngineSpec, count: int, seed: int = 0) -> list[Trial]:
    """Steps that no profile holds, between those that it does: decodes, prompts, and both, a third each."""
    known, draw = profile_trials(spec), random.Random(seed)
    most = Trial(
        decodes=max(trial.decodes for trial in known),
        context=max(trial.context for trial in known),
        chunk=max(trial.chunk for trial in known),
        chunk_context=max(trial.chunk_context for trial in known),
    )
    kinds = (_decodes, _prompt, _both)
    found: list[Trial] = []
    while len(found) < count:
        trial = kinds[len(found) % len(kinds)](most, draw)
        if _can_occur(trial, spec) and _within(trial, known) and trial not in (*known, *found):
            found.append(trial)
    return found


def _decodes(most: Trial, draw: random.Random) -> Trial:
    return Trial(decodes=_between(1, most.decodes, draw), context=_between(LEAST_CONTEXT, most.context, draw))


def _prompt(most: Trial, draw: random.Random) -> Trial:
    before = draw.choice((0, _between(1, max(1, most.chunk_context), draw)))
    return Trial(chunk=_between(LEAST_CHUNK, most.chunk, draw), chunk_context=before)


def _both(most: Trial, draw: random.Random) -> Trial:
    one, other = _decodes(most, draw), _prompt(most, draw)
    return Trial(decodes=one.decodes, context=one.context, chunk=other.chunk, chunk_context=other.chunk_context)


def _between(least: int, most: int, draw: random.Random) -> int:
    """Evenly over the logarithm: an engine meets 10 decodes as often as 100."""
    return round(least * (max(most, least) / least) ** draw.random())


def _within(trial: Trial, known: Iterable[Trial]) -> bool:
    """No more KV tokens and no more tokens than the largest of the known steps of its kind."""
    sizes: tuple[Callable[[Trial], int], ...] = (
        lambda one: one.decodes * one.context,
        lambda one: one.decodes + one.chunk,
        lambda one: one.chunk * one.chunk_context,
    )
    return all(size(trial) <= max(size(other) for other in known) for size in sizes)


def _can_occur(trial: Trial, spec: EngineSpec) -> bool:
    fits = trial.num_blocks(spec.block_size) * spec.block_size <= spec.kv_capacity_tokens or spec.device == "cpu"
    return (
        fits
        and len(trial.lengths) <= spec.max_sequences
        and trial.decodes + trial.chunk <= spec.token_budget
        and max(trial.lengths) < spec.max_context
    )
