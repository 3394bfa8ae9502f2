"""A request inside the engine: when its output ends and what its next delta says; it schedules nothing."""

from __future__ import annotations

import time
from collections.abc import Set
from dataclasses import dataclass, field

from cluster.request import FinishReason, TokenDelta, TokenLogprob
from engine.sequence import ChunkResult, ScheduledChunk, Sequence
from engine.text import StreamDetokenizer


@dataclass(slots=True, kw_only=True, eq=False)
class LiveRequest:
    sequence: Sequence
    detokenizer: StreamDetokenizer | None
    """Only where the request has stop strings."""
    _prompt_logprobs: list[TokenLogprob | None] = field(default_factory=list)
    _told: bool = False

    def take(self, chunk: ScheduledChunk, result: ChunkResult, eos_token_ids: Set[int]) -> TokenDelta | None:
        """Appends the chunk's token; None where the prompt is not through yet."""
        self._collect_prompt_logprobs(chunk, result)
        if result.token_id is None:
            return None
        self.sequence.token_ids.append(result.token_id)
        self.sequence.num_pending_tokens -= 1
        if self.sequence.first_token_s is None:
            self.sequence.first_token_s = time.monotonic()
        return self.delta(result=result, finish_reason=self._finish_reason(result.token_id, eos_token_ids))

    def delta(
        self,
        *,
        result: ChunkResult | None = None,
        finish_reason: FinishReason | None = None,
        error: str | None = None,
    ) -> TokenDelta:
        first, self._told = not self._told, True
        return TokenDelta(
            request_id=self.sequence.request.request_id,
            token_ids=[] if result is None or result.token_id is None else [result.token_id],
            logprobs=None if result is None or result.logprob is None else [result.logprob],
            prompt_logprobs=self._prompt_logprobs if first and result is not None and self._prompt_logprobs else None,
            cached_tokens=self.sequence.num_cached_tokens if first else 0,
            queued_s=self.sequence.queued_s if first else None,
            prefill_s=self.sequence.prefill_s if first else None,
            finish_reason=finish_reason,
            error=error,
        )

    def _collect_prompt_logprobs(self, chunk: ScheduledChunk, result: ChunkResult) -> None:
        if result.prompt_logprobs is not None:
            if chunk.start == 0:  # a prompt preempted half way begins anew
                self._prompt_logprobs = [None]
            self._prompt_logprobs += result.prompt_logprobs

    def _finish_reason(self, token_id: int, eos_token_ids: Set[int]) -> FinishReason | None:
        sampling = self.sequence.request.sampling
        if self.sequence.num_output_tokens > sampling.min_tokens:
            if token_id in sampling.stop_token_ids:
                return "stop"
            if token_id in eos_token_ids and not sampling.ignore_eos:
                return "stop"
        if self.detokenizer is not None:
            self.detokenizer.push([token_id])
            if self.detokenizer.stopped:
                return "stop"
        return "length" if self.sequence.num_output_tokens >= sampling.max_tokens else None
