"""The logits of a text's own tokens under an engine's real steps, some rows at a time; it compares nothing.

A prompt's log probabilities need one logit of each row, a divergence needs all of them: 100 MB for 512 rows of a
vocabulary of 49,152. So the rows come in pieces, and whoever walks two models in step holds a piece of each.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Protocol

from cluster.engine_spec import EngineSpec
from cluster.request import GenerationRequest, SamplingParams
from engine.engine import Engine, StepRunner
from engine.sequence import ScheduledChunk, Sequence

if TYPE_CHECKING:
    from torch import Tensor


class ScoringRunner(StepRunner, Protocol):
    """What engine.runner.Runner and engine.gpu.runner.GpuRunner give beyond an engine's steps."""

    def prompt_logits(self, chunk: ScheduledChunk, first_row: int) -> Iterator[Tensor]:
        """Computes the chunk's K and V, then the logits [R, vocab] fp32 of its rows from `first_row` on, in order."""
        ...


class WindowScorer:
    """A model loaded as a replica loads it, without what only a replica needs: warm-ups, CUDA graphs, a tokenizer."""

    def __init__(self, spec: EngineSpec) -> None:
        self._spec = spec
        self._runner = _runner(spec)

    def logits(self, token_ids: list[int], num_scored: int) -> Iterator[Tensor]:
        """The rows [R, vocab] fp32 that predict the last `num_scored` of a window's tokens, piece by piece.

        The window is prefilled like a prompt, in chunks of the token budget, into the first blocks of the cache; no
        request may be running. Two models of one vocabulary and token budget give pieces of the same rows.
        ValueError where the window does not fit the cache, or its first token is to be predicted.
        """
        spec, num_tokens = self._spec, len(token_ids) - 1  # the last one predicts what lies beyond the window
        num_blocks = -(-num_tokens // spec.block_size)
        if not 1 <= num_scored <= num_tokens:
            raise ValueError(f"num_scored {num_scored}: a window of {len(token_ids)} tokens predicts 1 to {num_tokens}")
        if num_blocks > self._runner.num_blocks:
            raise ValueError(f"a window of {len(token_ids)} tokens: the cache holds {spec.kv_capacity_tokens}")
        sequence = _window(token_ids, list(range(num_blocks)))
        for start in range(0, num_tokens, spec.token_budget):
            chunk = ScheduledChunk.of(sequence, min(spec.token_budget, num_tokens - start))
            yield from self._runner.prompt_logits(chunk, max(0, num_tokens - num_scored - start))
            sequence.num_computed_tokens = chunk.end

    def engine(self) -> Engine:
        """An engine over the same weights and cache, for requests between windows; without stop strings."""
        return Engine(self._spec, self._runner)


def _runner(spec: EngineSpec) -> ScoringRunner:
    if spec.device == "cuda":
        from engine.gpu.runner import GpuRunner

        runner = GpuRunner(spec)
        runner.allocate(spec.kv_capacity_tokens // spec.block_size)
        return runner
    from engine.runner import Runner

    return Runner(spec)


def _window(token_ids: list[int], block_table: list[int]) -> Sequence:
    return Sequence(
        request=GenerationRequest(request_id="window", prompt_token_ids=token_ids, sampling=SamplingParams()),
        token_ids=token_ids,
        num_prompt_tokens=len(token_ids),
        seed=0,
        arrival=0,
        block_table=block_table,
        slot=0,
    )
