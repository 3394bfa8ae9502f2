"""One variant's quality, measured in a process of its own: divergence over windows, greedy answers; it reads no files.

At most two models are loaded: the variant, and the reference that walks the windows beside it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

from batch_jobs.perplexity import Window
from cluster.engine_spec import EngineSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class QualityTask:
    spec: EngineSpec
    reference: EngineSpec | None
    """None: the variant is the reference."""
    token_ids: list[int]
    windows: list[Window]
    prompts: list[list[int]]

    @property
    def num_steps(self) -> int:
        return len(self.windows) + len(self.prompts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Quality:
    perplexity: float
    kl: float
    """KL(reference || variant), the mean over the tokens that count, in nats."""
    top1_agreement: float
    """Share of those tokens before which both models' likeliest token is the same."""
    scored_tokens: int
    answers: list[list[int]]
    """By prompt."""
    seconds: float
    """With loading the models."""


def measure_quality(task: QualityTask) -> Iterator[Quality | None]:
    """None for each window and each answer as it is done, for whoever shows progress; then the result."""
    # torch: only in the process that measures
    from batch_jobs.evaluate.answers import greedy_answers
    from batch_jobs.evaluate.divergence import Divergence, walk
    from engine.scoring import WindowScorer

    started_s = time.monotonic()
    variant = WindowScorer(task.spec)
    reference = None if task.reference is None else WindowScorer(task.reference)
    total, answers = Divergence(), dict[int, list[int]]()
    for window in walk(variant, reference, task.token_ids, task.windows):
        total += window
        yield None
    del reference
    for number, answer in greedy_answers(variant.engine(), task.prompts):
        answers[number] = answer
        yield None
    ordered = [answers[number] for number in range(len(task.prompts))]
    yield Quality(
        perplexity=total.perplexity,
        kl=total.kl / total.num_tokens,
        top1_agreement=total.agreements / total.num_tokens,
        scored_tokens=total.num_tokens,
        answers=ordered,
        seconds=time.monotonic() - started_s,
    )
