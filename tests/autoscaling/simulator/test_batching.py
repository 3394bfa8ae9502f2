"""Batching: every step's chunks are those of the engine's own scheduler over its own block pool."""

from __future__ import annotations

import random

import pytest

from autoscaling.simulator.batching import Batching, ScheduledStep, ThroughputSums
from autoscaling.simulator.kv_blocks import KvBlocks
from autoscaling.simulator.sequence import SimulatedSequence
from cluster.prediction import ReplicaLimits
from cluster.rank import rank
from cluster.slo import Objective
from engine.queue_load import queue_load
from tests.autoscaling.simulator.engine_loop import ChunkKey, EngineLoop

BLOCK_SIZE = 4


class Both:
    def __init__(self, num_blocks: int, token_budget: int, max_sequences: int) -> None:
        self.engine = EngineLoop(num_blocks, BLOCK_SIZE, token_budget, max_sequences)
        limits = ReplicaLimits(token_budget=token_budget, max_sequences=max_sequences, max_waiting=1000)
        self.batching = Batching(KvBlocks(num_blocks, BLOCK_SIZE), limits)
        self.arrivals = 0

    def add(
        self,
        prompt_tokens: int,
        output_tokens: int,
        priority: int,
        prefix: tuple[int, ...] = (),
        *,
        objective: Objective = "latency",
        deadline_s: float | None = None,
    ) -> None:
        """`prefix`: names of shared blocks; a block of a name has the same tokens everywhere."""
        prefix = prefix[: prompt_tokens // BLOCK_SIZE]
        shared = [BLOCK_SIZE * name + index for name in prefix for index in range(BLOCK_SIZE)]
        self.engine.add(
            shared + self.engine.fresh_tokens(prompt_tokens - len(shared)),
            output_tokens,
            priority=priority,
            objective=objective,
            deadline_s=deadline_s,
        )
        self.batching.add(
            SimulatedSequence(
                request_id=str(self.arrivals),
                rank=rank(
                    priority=priority,
                    objective=objective,
                    deadline_s=deadline_s,
                    arrived_s=0.0,
                    number=self.arrivals,
                ),
                num_tokens=prompt_tokens,
                end_tokens=prompt_tokens + output_tokens,
                needed_tokens=prompt_tokens + output_tokens,
                is_throughput=objective == "throughput",
                shared_blocks=prefix,
            )
        )
        self.arrivals += 1

    def step(self) -> list[ChunkKey]:
        """One step of each, which must be the same."""
        expected = self.engine.step()
        step = self.batching.schedule()
        found = chunks_of(self.batching, step)
        assert found == expected
        if step is not None:
            self.batching.complete(step, 1)
        assert self.batching.pool.num_used == self.engine.pool.num_used
        assert self.batching.pool.num_cached == self.engine.pool.num_cached
        self._same_load()
        return found

    def _same_load(self) -> None:
        """But that a last prompt token alone counts as a decode there."""
        batching, expected = self.batching, queue_load(self.engine.scheduler)
        alone = [each for each in batching.running if each.joined_step < 0 and each.num_uncomputed_tokens == 1]
        sums, late = batching.throughput, sum(each.is_throughput for each in alone)
        assert batching.decoding.num_sequences + len(alone) == expected["decode_sequences"]
        assert batching.waiting_prefill_tokens - len(alone) == expected["waiting_prefill_tokens"]
        assert sums.num_running == expected.get("throughput_sequences", 0)
        assert sums.num_waiting == expected.get("throughput_waiting", 0)
        assert sums.waiting_prefill_tokens - late == expected.get("throughput_prefill_tokens", 0)
        held_blocks = min(batching.pool.num_used, sums.held_blocks)
        assert held_blocks * BLOCK_SIZE == expected.get("throughput_kv_tokens", 0)

    @property
    def has_work(self) -> bool:
        return bool(self.engine.scheduler.waiting or self.engine.scheduler.running)


def chunks_of(batching: Batching, step: ScheduledStep | None) -> list[ChunkKey]:
    """Of prompts, and one token of every decoding sequence."""
    if step is None:
        return []
    chunks = [(chunk.sequence.rank[-1], chunk.start, chunk.num_tokens) for chunk in step.chunks]
    for sequence in batching.running:
        if sequence.joined_step >= 0:
            chunks.append((sequence.rank[-1], batching.decoding.tokens(sequence) - 1, 1))
    return sorted(chunks)


@pytest.mark.parametrize("seed", range(60))
def test_the_same_chunks_as_the_engine_at_every_step(seed: int) -> None:
    rng = random.Random(seed)
    num_blocks = rng.choice([12, 24, 64])
    both = Both(num_blocks, token_budget=rng.choice([8, 16, 33]), max_sequences=rng.choice([3, 6]))
    longest = min(60, num_blocks * BLOCK_SIZE)
    steps = 0
    while both.arrivals < 60 or both.has_work:
        while both.arrivals < 60 and rng.random() < 0.25:
            prompt = rng.randrange(1, longest - 8)
            output = rng.randrange(1, longest - prompt)
            both.add(
                prompt,
                output,
                priority=rng.choice([0, 0, 1]),
                objective=rng.choice(["latency", "latency", "throughput"]),
                deadline_s=rng.choice([None, 0.5, rng.uniform(0.0, 60.0)]),
            )
        both.step()
        steps += 1
        assert steps < 10_000
    assert both.batching.num_preemptions == both.engine.scheduler.num_preemptions
    assert both.batching.waiting_prefill_tokens == both.batching.held_blocks == both.batching.promised_tokens == 0
    assert both.batching.throughput == ThroughputSums()


@pytest.mark.parametrize("seed", range(40))
def test_the_same_with_prefixes_that_prompts_share(seed: int) -> None:
    rng = random.Random(1000 + seed)
    both = Both(rng.choice([24, 48, 100]), token_budget=rng.choice([8, 16, 64]), max_sequences=rng.choice([3, 6]))
    families = [tuple(100 * family + index for index in range(8)) for family in range(3)]
    while both.arrivals < 80 or both.has_work:
        while both.arrivals < 80 and rng.random() < 0.2:
            prefix = rng.choice(families)[: rng.randrange(9)]
            prompt = max(1, BLOCK_SIZE * len(prefix) + rng.randrange(-2, 12))
            both.add(prompt, rng.randrange(1, 16), priority=0, prefix=prefix)
        both.step()
    assert both.batching.num_prefix_hit_tokens == both.engine.scheduler.num_prefix_hit_tokens > 0
    assert both.batching.num_preemptions == both.engine.scheduler.num_preemptions


def test_many_steps_at_once_stop_where_a_block_is_missing() -> None:
    """Two sequences of 8 tokens in 6 blocks of 4: both grow at once, and there is one round of blocks to grow into."""
    both = Both(6, token_budget=16, max_sequences=4)
    for _ in range(2):
        both.add(7, 40 - 20, priority=0)
    both.step()
    both.step()
    step = both.batching.schedule()
    assert step is not None
    assert not step.chunks
    assert step.most_repeats == 4
