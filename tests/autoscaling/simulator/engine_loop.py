"""The engine's own scheduler and block pool, driven step by step with made-up tokens: what the simulator must equal."""

from __future__ import annotations

from collections.abc import Sequence as Items
from itertools import count

from cluster.request import GenerationRequest, SamplingParams
from cluster.slo import Objective
from engine.kv_cache import BlockPool
from engine.scheduler import Scheduler
from engine.sequence import ScheduledChunk, Sequence

ChunkKey = tuple[int, int, int]


class EngineLoop:
    """Each sequence ends with its max_tokens; ids of new tokens are never the same twice."""

    def __init__(self, num_blocks: int, block_size: int, token_budget: int, max_sequences: int) -> None:
        self.pool = BlockPool(num_blocks, block_size)
        self.scheduler = Scheduler(self.pool, token_budget=token_budget, max_sequences=max_sequences)
        self._fresh = count(1_000_000)
        self._arrivals = 0

    def add(
        self,
        prompt: Items[int],
        output_tokens: int,
        priority: int = 0,
        objective: Objective = "latency",
        deadline_s: float | None = None,
    ) -> None:
        """The clock stands still: deadlines count from the same moment."""
        request = GenerationRequest(
            request_id=str(self._arrivals),
            prompt_token_ids=list(prompt),
            sampling=SamplingParams(max_tokens=output_tokens),
            priority=priority,
            objective=objective,
            deadline_s=deadline_s,
        )
        sequence = Sequence(
            request=request,
            token_ids=list(prompt),
            num_prompt_tokens=len(prompt),
            seed=0,
            arrival=self._arrivals,
        )
        self._arrivals += 1
        self.scheduler.add(sequence)

    def fresh_tokens(self, num: int) -> list[int]:
        return [next(self._fresh) for _ in range(num)]

    def step(self) -> list[ChunkKey]:
        """The chunks of one step, as (arrival, start, tokens), in order of arrival."""
        chunks = self.scheduler.schedule()
        for chunk in chunks:
            self.scheduler.advance(chunk)
        for chunk in chunks:
            self._take(chunk)
        return sorted((chunk.sequence.arrival, chunk.start, chunk.num_tokens) for chunk in chunks)

    def _take(self, chunk: ScheduledChunk) -> None:
        sequence = chunk.sequence
        if chunk.samples:
            sequence.token_ids.append(next(self._fresh))
            sequence.num_pending_tokens -= 1
        self.scheduler.publish(chunk)
        if sequence.num_output_tokens == sequence.request.sampling.max_tokens:
            self.scheduler.remove(sequence)
