"""Batching: which tokens of which sequences each step computes, as engine.scheduler does it; it knows no time."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from heapq import merge
from typing import NamedTuple

from autoscaling.simulator.decoding import Decoding
from autoscaling.simulator.kv_blocks import KvBlocks
from autoscaling.simulator.sequence import SimulatedSequence
from cluster.prediction import ReplicaLimits
from cluster.profile import StepShape
from cluster.rank import Rank

NO_KEYS: frozenset[int] = frozenset()


class Chunk(NamedTuple):
    """`num_tokens` tokens of a prompt from position `start` on."""

    sequence: SimulatedSequence
    start: int
    num_tokens: int


class ScheduledStep(NamedTuple):
    """A tuple, as a run makes millions of them and a frozen dataclass takes four times as long to make."""

    decode_sequences: int
    """Chunks of one token included: they are decodes to the hardware."""
    kv_tokens: int
    prefill_tokens: int
    prefill_context_tokens: int
    chunks: Sequence[Chunk]
    """Beside the decodes: one token of every decoding sequence."""
    most_repeats: int
    """So many steps like it may follow one another, each with one more KV token a decode."""

    @property
    def shape(self) -> StepShape:
        return StepShape(
            decode_sequences=self.decode_sequences,
            kv_tokens=self.kv_tokens,
            prefill_tokens=self.prefill_tokens,
            prefill_context_tokens=self.prefill_context_tokens,
        )


@dataclass(slots=True)
class Stepped:
    """What steps brought."""

    begun: list[SimulatedSequence] = field(default_factory=list)
    """Their first token came."""
    ended: list[SimulatedSequence] = field(default_factory=list)


@dataclass(slots=True)
class ThroughputSums:
    """Of the live sequences of a throughput objective."""

    num_waiting: int = 0
    num_running: int = 0
    waiting_prefill_tokens: int = 0
    promised_tokens: int = 0
    held_blocks: int = 0


def _rank(sequence: SimulatedSequence) -> Rank:
    return sequence.rank


class Batching:
    """The waiting and the running in order of rank, and the sums over the decoding ones."""

    def __init__(self, pool: KvBlocks, limits: ReplicaLimits) -> None:
        self.pool = pool
        self.waiting: list[SimulatedSequence] = []
        self.running: list[SimulatedSequence] = []
        self.decoding = Decoding(pool.block_size)
        self.waiting_prefill_tokens = 0
        self.promised_tokens = 0
        """Prompt and max_tokens of all live sequences."""
        self.held_blocks = 0
        """Of all running ones; one that two share counts twice."""
        self.throughput = ThroughputSums()
        self.num_preemptions = 0
        self.num_prefix_hit_tokens = 0
        self._limits = limits
        self._ranks: list[Rank] = []
        """Of the running."""
        self._prefilling: list[SimulatedSequence] = []
        self._has_grown = False
        """Whether the blocks for the step at hand are taken already."""

    @property
    def num_requests(self) -> int:
        return len(self.waiting) + len(self.running)

    def add(self, sequence: SimulatedSequence) -> None:
        self._wait_for(sequence, sequence.num_tokens)
        self.promised_tokens += sequence.needed_tokens
        if sequence.is_throughput:
            self.throughput.promised_tokens += sequence.needed_tokens

    def schedule(self) -> ScheduledStep | None:
        """The decodes first, then chunks of prompts by rank, until the token budget is spent; None without work."""
        if not self.running and not self.waiting:
            return None
        self._grow_decodes()
        decoding = self.decoding
        if self._prefilling or self.waiting:
            chunks = self._chunks()
            if chunks:
                return self._mixed(chunks)
        num_sequences = decoding.growth.num_sequences
        if not num_sequences:
            return None
        return ScheduledStep(num_sequences, decoding.kv_tokens, 0, 0, (), decoding.most_repeats(self.pool.num_free))

    def complete(self, step: ScheduledStep, repeats: int) -> Stepped:
        """The step was made, and repeated so that it happened so many times in all."""
        decoding = self.decoding
        if repeats > 1:
            self._hold(decoding.growth.after(decoding.step, repeats))
            of_throughput = decoding.growth_of_throughput
            if of_throughput.num_sequences:
                self.throughput.held_blocks += of_throughput.after(decoding.step, repeats)
        self._has_grown = False
        done = Stepped([], decoding.advance(repeats))
        for sequence in done.ended:
            self._remove(sequence)
        for chunk in step.chunks:
            self._enter(chunk, done)
        return done

    def _mixed(self, chunks: Sequence[Chunk]) -> ScheduledStep:
        decodes, kv_tokens = self.decoding.num_sequences, self.decoding.kv_tokens
        prefill = context = 0
        for _, start, num_tokens in chunks:
            if num_tokens == 1:
                decodes += 1
                kv_tokens += start + 1
            else:
                prefill += num_tokens
                context += start
        return ScheduledStep(decodes, kv_tokens, prefill, context, chunks, 1)

    def _hold(self, num_blocks: int) -> None:
        if num_blocks:
            self.pool.take(num_blocks)
            self.held_blocks += num_blocks

    def _grow_decodes(self) -> None:
        decoding = self.decoding
        if (wanted := decoding.growth.at(decoding.step)) <= self.pool.num_free:
            self._hold(wanted)
            if decoding.growth_of_throughput.num_sequences:
                self.throughput.held_blocks += decoding.growth_of_throughput.at(decoding.step)
        else:
            self._grow_short_of_blocks()
        self._has_grown = True

    def _grow_short_of_blocks(self) -> None:
        """One by one in order of rank; whoever stands last gives way."""
        grown: set[SimulatedSequence] = set()
        for sequence in list(self.running):
            if not self.decoding.wants_block(sequence):
                continue
            while self.pool.num_free == 0 and sequence.joined_step >= 0:
                victim = self.running[-1]
                self._preempt(victim, self._held(victim) + (victim in grown))
            if sequence.joined_step >= 0:
                self._hold(1)
                self.throughput.held_blocks += sequence.is_throughput
                grown.add(sequence)

    def _chunks(self) -> Sequence[Chunk]:
        """Those of which one token is left count among the decodes."""
        chunks: dict[SimulatedSequence, Chunk] = {}
        half_done: list[SimulatedSequence] = []
        for sequence in self._prefilling:
            if sequence.num_uncomputed_tokens == 1:
                chunks[sequence] = Chunk(sequence, sequence.num_computed_tokens, 1)
            else:
                half_done.append(sequence)
        head_fits = True
        for sequence in self._in_order(half_done):
            budget = self._limits.token_budget - self.decoding.growth.num_sequences
            if chunks:
                budget -= sum([chunk.num_tokens for chunk in chunks.values()])
            if budget <= 0:
                break
            if not sequence.num_blocks:
                # Nobody overtakes a waiting sequence that does not fit, or a long prompt would wait for ever.
                head_fits = head_fits and self._admit(sequence, chunks)
                if not head_fits and (not half_done or sequence.rank > half_done[-1].rank):
                    break
            if sequence.num_blocks:
                start = sequence.num_computed_tokens
                chunks[sequence] = Chunk(sequence, start, min(budget, sequence.num_tokens - start))
        return tuple(chunks.values())

    def _in_order(self, half_done: list[SimulatedSequence]) -> Iterable[SimulatedSequence]:
        """With the waiting as they are now: who is preempted meanwhile is not among them."""
        if not self.waiting:
            return half_done
        waiting = list(self.waiting)
        return merge(half_done, waiting, key=_rank) if half_done else waiting

    def _admit(self, sequence: SimulatedSequence, chunks: dict[SimulatedSequence, Chunk]) -> bool:
        """As engine.scheduler.Scheduler._admit, to the block."""
        pool, most = self.pool, self._limits.max_sequences
        known, num_blocks = pool.known_prefix(sequence), pool.blocks_for(sequence.num_tokens)
        wanted = num_blocks - known + pool.num_idle(sequence, known)
        keepers = bisect_left(self._ranks, sequence.rank)
        if keepers >= most:
            return False
        if wanted + keepers > pool.num_free:
            kept = frozenset(sequence.shared_blocks[:known]) if known else NO_KEYS
            victims = self.running[keepers:]
            freed = sum(pool.num_sole(victim, self._held(victim), kept) for victim in victims)
            if wanted + keepers > pool.num_free + freed:
                return False
        while len(self.running) >= most or wanted + len(self.running) > pool.num_free:
            victim = self.running[-1]
            chunks.pop(victim, None)
            self._preempt(victim, self._held(victim))
            wanted = num_blocks - known + pool.num_idle(sequence, known)
        self.pool.admit(sequence, known, num_blocks)
        sequence.num_blocks = num_blocks
        self._start(sequence, keepers, known * self.pool.block_size)
        return True

    def _start(self, sequence: SimulatedSequence, place: int, hit_tokens: int) -> None:
        """`place`: among the running."""
        sequence.num_computed_tokens = hit_tokens
        if sequence.num_preemptions == 0:
            self.num_prefix_hit_tokens += hit_tokens
        self.waiting_prefill_tokens -= hit_tokens
        self.held_blocks += sequence.num_blocks
        if sequence.is_throughput:
            sums = self.throughput
            sums.waiting_prefill_tokens -= hit_tokens
            sums.held_blocks += sequence.num_blocks
            sums.num_waiting -= 1
            sums.num_running += 1
        self.waiting.remove(sequence)
        self._ranks.insert(place, sequence.rank)
        self.running.insert(place, sequence)
        insort(self._prefilling, sequence, key=_rank)

    def _wait_for(self, sequence: SimulatedSequence, num_tokens: int) -> None:
        """It waits, with so many more tokens to compute than were counted."""
        self.waiting_prefill_tokens += num_tokens
        if sequence.is_throughput:
            self.throughput.waiting_prefill_tokens += num_tokens
            self.throughput.num_waiting += 1
        insort(self.waiting, sequence, key=_rank)

    def _preempt(self, victim: SimulatedSequence, num_blocks: int) -> None:
        """`victim` is the last of the running."""
        if victim.joined_step >= 0:
            self.decoding.leave(victim)
            uncounted = victim.num_tokens
        else:
            self._prefilling.remove(victim)
            uncounted = victim.num_computed_tokens
        self._release(len(self.running) - 1, num_blocks, victim.num_computed_tokens)
        victim.num_computed_tokens = 0
        victim.num_preemptions += 1
        self.num_preemptions += 1
        self._wait_for(victim, uncounted)

    def _enter(self, chunk: Chunk, done: Stepped) -> None:
        sequence, start, num_tokens = chunk
        end = start + num_tokens
        if sequence.shared_blocks:
            self.pool.publish(sequence, start, end)
        self.waiting_prefill_tokens -= num_tokens
        if sequence.is_throughput:
            self.throughput.waiting_prefill_tokens -= num_tokens
        sequence.num_computed_tokens = end
        if end < sequence.num_tokens:
            return
        sequence.num_tokens += 1
        if not sequence.has_output:
            sequence.has_output = True
            done.begun.append(sequence)
        self._prefilling.remove(sequence)
        if sequence.num_tokens >= sequence.end_tokens:
            self._remove(sequence)
            done.ended.append(sequence)
        else:
            self.decoding.join(sequence)

    def _remove(self, sequence: SimulatedSequence) -> None:
        """One that has all its tokens, the last of them not computed."""
        self._release(bisect_left(self._ranks, sequence.rank), sequence.num_blocks, sequence.num_tokens - 1)
        self.promised_tokens -= sequence.needed_tokens
        if sequence.is_throughput:
            self.throughput.promised_tokens -= sequence.needed_tokens

    def _release(self, place: int, num_blocks: int, num_computed_tokens: int) -> None:
        """`place`: among the running."""
        sequence = self.running.pop(place)
        del self._ranks[place]
        self.pool.release(sequence, num_blocks, num_computed_tokens)
        self.held_blocks -= num_blocks
        if sequence.is_throughput:
            self.throughput.held_blocks -= num_blocks
            self.throughput.num_running -= 1
        sequence.num_blocks = 0

    def _held(self, sequence: SimulatedSequence) -> int:
        if sequence.joined_step < 0:
            return sequence.num_blocks
        return self.pool.blocks_for(self.decoding.tokens(sequence) - (not self._has_grown))
