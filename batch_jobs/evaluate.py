"""What a variant costs in quality: its perplexity on a text beside the unquantised model's; it knows no speed."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from batch_jobs.engine_choice import choose_engine
from batch_jobs.perplexity import WINDOWS_AT_ONCE, Perplexity, Window, measure, total, windows
from batch_jobs.report import VariantScore
from cluster.config import FleetConfig
from cluster.engine_spec import EngineSpec
from cluster.errors import UserError
from cluster.variants import Variant
from engine.text import TextCodec

CHARACTERS_PER_TOKEN = 16
"""More than text has anywhere; what is read of a long file when only its first tokens are wanted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluateJob:
    config: FleetConfig
    variants: tuple[str, ...]
    text: Path
    context: int = 512
    stride: int | None = None
    """None: the context, so that windows are disjoint."""
    max_tokens: int | None = 20480

    def __post_init__(self) -> None:
        if self.context < 2:
            raise UserError(f"--context {self.context}: a window has 2 tokens at least")
        if not 1 <= self.step <= self.context:
            raise UserError(f"--stride {self.step}: must lie between 1 and the context, {self.context}")
        if self.max_tokens is not None and self.max_tokens < 2:
            raise UserError(f"--max-tokens {self.max_tokens}: must be at least 2")

    @property
    def step(self) -> int:
        return self.context if self.stride is None else self.stride


def run_evaluate(job: EvaluateJob, console: Console | None = None) -> list[VariantScore]:
    """The reference first, then the variants asked for, each in an engine of its own, one after another."""
    console = console or Console(quiet=True)
    reference = reference_variant(job.config)
    names = [reference.name, *(name for name in job.variants if name != reference.name)]
    specs = [_spec(job, name) for name in names]
    token_ids = read_tokens(job.text, TextCodec(specs[0].checkpoint), job.max_tokens)
    scores: list[VariantScore] = []
    for spec in specs:
        started_s = time.monotonic()
        perplexity = score(spec, token_ids, job.context, job.step, console)
        scores.append(
            VariantScore(
                variant=spec.variant.name,
                perplexity=perplexity.value,
                quality=(scores[0].perplexity if scores else perplexity.value) / perplexity.value,
                num_tokens=perplexity.num_tokens,
                seconds=time.monotonic() - started_s,
            )
        )
    return scores


def reference_variant(config: FleetConfig) -> Variant:
    """What quality is measured against: the model's own weights in bf16, or else unquantised in another dtype."""
    unquantised = [v for v in config.variants.values() if v.method == "none" and v.source is None and v.head == "same"]
    if not unquantised:
        raise UserError("variants: none is unquantised, nothing to compare with; add `bf16: {method: none}`")
    return next((variant for variant in unquantised if variant.dtype == "bf16"), unquantised[0])


def read_tokens(path: Path, codec: TextCodec, max_tokens: int | None) -> list[int]:
    try:
        with path.open(encoding="utf-8") as stream:
            text = stream.read(-1 if max_tokens is None else max_tokens * CHARACTERS_PER_TOKEN)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--text {path}: cannot be read: {error}") from None
    token_ids = codec.encode(text)[:max_tokens]
    if len(token_ids) < 2:
        raise UserError(f"--text {path}: has {len(token_ids)} tokens; perplexity needs 2 at least")
    return token_ids


def score(spec: EngineSpec, token_ids: list[int], context: int, stride: int, console: Console) -> Perplexity:
    from engine.engine import build_engine  # torch: only where an engine runs

    pieces = list(windows(len(token_ids), context, stride))
    scored: list[tuple[Window, float]] = []
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task(f"{spec.variant.name}, windows of {context} tokens", total=len(pieces))
        for piece in measure(build_engine(spec), token_ids, pieces):
            scored.append(piece)
            progress.advance(task)
    return total(scored)


def _spec(job: EvaluateJob, name: str) -> EngineSpec:
    """An engine with room for a few windows; a prefix taken from the cache would have no log probabilities."""
    spec = choose_engine(job.config, name).spec
    max_context = job.context + 1  # the token that every request generates
    blocks = -(-max_context // spec.block_size) * WINDOWS_AT_ONCE
    return replace(spec, max_context=max_context, kv_capacity_tokens=blocks * spec.block_size, prefix_caching=False)
