"""Batching: which tokens of which sequences each step computes, as engine.scheduler does it; it knows no time."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable
from dataclasses import dataclass, field

from autoscaling.simulator.decoding import Decoding
from autoscaling.simulator.kv_blocks import KvBlocks
from autoscaling.simulator.sequence import SimulatedSequence
from cluster.prediction import ReplicaLimits
from cluster.profile import StepShape

NO_KEYS: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Chunk:
    """`num_tokens` tokens of a prompt from position `start` on."""

    sequence: SimulatedSequence
    start: int
    num_tokens: int

    @property
    def end(self) -> int:
        return self.start + self.num_tokens


@dataclass(frozen=True, slots=True)
class ScheduledStep:
    shape: StepShape
    chunks: tuple[Chunk, ...]
    """Beside the decodes: one token of every decoding sequence."""
    most_repeats: int
    """So many steps like it may follow one another, each with one more KV token a decode."""


@dataclass(slots=True)
class Stepped:
    """What steps brought."""

    begun: list[SimulatedSequence] = field(default_factory=list)
    """Their first token came."""
    ended: list[SimulatedSequence] = field(default_factory=list)


def _rank(sequence: SimulatedSequence) -> tuple[int, int]:
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
        self.num_preemptions = 0
        self.num_prefix_hit_tokens = 0
        self._limits = limits
        self._prefilling: list[SimulatedSequence] = []
        self._has_grown = False
        """Whether the blocks for the step at hand are taken already."""

    @property
    def num_requests(self) -> int:
        return len(self.waiting) + len(self.running)

    def add(self, sequence: SimulatedSequence) -> None:
        self.waiting_prefill_tokens += sequence.num_tokens
        self.promised_tokens += sequence.needed_tokens
        insort(self.waiting, sequence, key=_rank)

    def schedule(self) -> ScheduledStep | None:
        """The decodes first, then chunks of prompts by rank, until the token budget is spent; None without work."""
        if not self.running and not self.waiting:
            return None
        self._grow_decodes()
        chunks = tuple(self._chunks()) if self._prefilling or self.waiting else ()
        if not chunks and not self.decoding.num_sequences:
            return None
        if not chunks:
            return ScheduledStep(self._shape(()), (), self.decoding.most_repeats(self.pool.num_free))
        return ScheduledStep(self._shape(chunks), chunks, 1)

    def complete(self, step: ScheduledStep, repeats: int) -> Stepped:
        """The step was made, and repeated so that it happened so many times in all."""
        further = self.decoding.growth(repeats) if repeats > 1 else 0
        self.pool.take(further)
        self.held_blocks += further
        self._has_grown = False
        done = Stepped(ended=self.decoding.advance(repeats))
        for sequence in done.ended:
            self._remove(sequence)
        for chunk in step.chunks:
            self._enter(chunk, done)
        return done

    def _shape(self, chunks: Iterable[Chunk]) -> StepShape:
        """A chunk of one token is a decode to the hardware."""
        decodes, kv_tokens = self.decoding.num_sequences, self.decoding.kv_tokens
        prefill = context = 0
        for chunk in chunks:
            if chunk.num_tokens == 1:
                decodes += 1
                kv_tokens += chunk.end
            else:
                prefill += chunk.num_tokens
                context += chunk.start
        return StepShape(
            decode_sequences=decodes, kv_tokens=kv_tokens, prefill_tokens=prefill, prefill_context_tokens=context
        )

    def _grow_decodes(self) -> None:
        if (wanted := self.decoding.wanted()) <= self.pool.num_free:
            self.pool.take(wanted)
            self.held_blocks += wanted
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
                self.pool.take(1)
                self.held_blocks += 1
                grown.add(sequence)

    def _chunks(self) -> Iterable[Chunk]:
        """Those of which one token is left count among the decodes."""
        chunks: dict[SimulatedSequence, Chunk] = {}
        half_done: list[SimulatedSequence] = []
        for sequence in self._prefilling:
            if sequence.num_uncomputed_tokens == 1:
                chunks[sequence] = Chunk(sequence, sequence.num_computed_tokens, 1)
            else:
                half_done.append(sequence)
        head_fits = True
        for sequence in sorted([*half_done, *self.waiting], key=_rank) if self.waiting else half_done:
            budget = (
                self._limits.token_budget - self.decoding.num_sequences - sum(c.num_tokens for c in chunks.values())
            )
            if budget <= 0:
                break
            if not sequence.num_blocks:
                # Nobody overtakes a waiting sequence that does not fit, or a long prompt would wait for ever.
                head_fits = head_fits and self._admit(sequence, chunks)
                if not head_fits and (not half_done or sequence.rank > half_done[-1].rank):
                    break
            if sequence.num_blocks:
                start = sequence.num_computed_tokens
                chunks[sequence] = Chunk(sequence, start, min(budget, sequence.num_uncomputed_tokens))
        return chunks.values()

    def _admit(self, sequence: SimulatedSequence, chunks: dict[SimulatedSequence, Chunk]) -> bool:
        """As engine.scheduler.Scheduler._admit, to the block."""
        pool, most = self.pool, self._limits.max_sequences
        known = pool.known_prefix(sequence)
        wanted = self._blocks_wanted(sequence, known)
        keepers = bisect_left(self.running, sequence.rank, key=_rank)
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
            wanted = self._blocks_wanted(sequence, known)
        self._start(sequence, known)
        return True

    def _blocks_wanted(self, sequence: SimulatedSequence, known: int) -> int:
        num_blocks = self.pool.blocks_for(sequence.num_tokens)
        return num_blocks - known + (self.pool.num_idle(sequence, known) if known else 0)

    def _start(self, sequence: SimulatedSequence, known: int) -> None:
        num_blocks = self.pool.blocks_for(sequence.num_tokens)
        self.pool.admit(sequence, known, num_blocks)
        sequence.num_blocks = num_blocks
        sequence.num_computed_tokens = known * self.pool.block_size
        if sequence.num_preemptions == 0:
            self.num_prefix_hit_tokens += sequence.num_computed_tokens
        self.waiting_prefill_tokens -= sequence.num_computed_tokens
        self.held_blocks += num_blocks
        self.waiting.remove(sequence)
        insort(self.running, sequence, key=_rank)
        insort(self._prefilling, sequence, key=_rank)

    def _preempt(self, victim: SimulatedSequence, num_blocks: int) -> None:
        """`victim` is the last of the running."""
        if victim.joined_step >= 0:
            self.decoding.leave(victim)
            self.waiting_prefill_tokens += victim.num_tokens
        else:
            self._prefilling.remove(victim)
            self.waiting_prefill_tokens += victim.num_computed_tokens
        self.running.pop()
        self.pool.release(victim, num_blocks, victim.num_computed_tokens)
        self.held_blocks -= num_blocks
        victim.num_blocks = victim.num_computed_tokens = 0
        victim.num_preemptions += 1
        self.num_preemptions += 1
        insort(self.waiting, victim, key=_rank)

    def _enter(self, chunk: Chunk, done: Stepped) -> None:
        sequence = chunk.sequence
        self.pool.publish(sequence, chunk.start, chunk.end)
        self.waiting_prefill_tokens -= chunk.num_tokens
        sequence.num_computed_tokens = chunk.end
        if sequence.num_uncomputed_tokens:
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
        del self.running[bisect_left(self.running, sequence.rank, key=_rank)]
        self.pool.release(sequence, sequence.num_blocks, sequence.num_tokens - 1)
        self.held_blocks -= sequence.num_blocks
        self.promised_tokens -= sequence.needed_tokens
        sequence.num_blocks = 0

    def _held(self, sequence: SimulatedSequence) -> int:
        if sequence.joined_step < 0:
            return sequence.num_blocks
        return self.pool.blocks_for(self.decoding.tokens(sequence) - (not self._has_grown))
