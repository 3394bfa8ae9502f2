"""Continuous batching: which tokens of which sequences the next step computes; it runs no model and knows no text.

A sequence takes the blocks of all its tokens when it is admitted and one more whenever a decode fills the last. When
blocks or places run out, the sequence of the largest rank (cluster/rank.py) gives up its own and waits again, keeping
its output; nothing is ever preempted for a sequence of larger rank, so the smallest rank always advances. Background
sequences come into a step as far as engine/background_room.py has room for them; else they stay as they are.
"""

from __future__ import annotations

import time
from bisect import bisect_left, insort
from collections.abc import Callable
from heapq import merge

from cluster.rank import Rank
from engine.background_room import PROMPT_TOKENS, BackgroundRoom
from engine.kv_cache import BlockPool, extend_block_hashes
from engine.sequence import ScheduledChunk, Sequence
from engine.step_meter import step_shape


def _rank(sequence: Sequence) -> Rank:
    return sequence.rank


def num_online(sequences: list[Sequence]) -> int:
    """In order of rank: those after them are background work."""
    return bisect_left(sequences, (True,), key=_rank)


class Scheduler:
    """The waiting and the running, both in order of rank, and the chunks of each step under one token budget."""

    def __init__(
        self,
        pool: BlockPool,
        *,
        token_budget: int,
        max_sequences: int,
        prefix_caching: bool = True,
        background: BackgroundRoom | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if token_budget < 1 or max_sequences < 1:
            raise ValueError(f"token_budget {token_budget} and max_sequences {max_sequences} must be at least 1")
        self.pool = pool
        self.waiting: list[Sequence] = []
        self.running: list[Sequence] = []
        self.num_preemptions = 0
        self.num_prefix_hit_tokens = 0
        self._token_budget = token_budget
        self._max_sequences = max_sequences
        self._prefix_caching = prefix_caching
        self._background = background or BackgroundRoom()
        self._clock = clock
        self._free_slots = list(range(max_sequences - 1, -1, -1))

    def add(self, sequence: Sequence) -> None:
        insort(self.waiting, sequence, key=_rank)

    def schedule(self) -> list[ScheduledChunk]:
        """The decodes first, then chunks of prompts, each in order of rank, until the budget is spent."""
        chunks: dict[int, ScheduledChunk] = {}
        self._schedule_decodes(self.running[: num_online(self.running)], chunks)
        self._schedule_prompts(chunks)
        self._schedule_background(chunks)
        return list(chunks.values())

    def advance(self, chunk: ScheduledChunk) -> None:
        """Notes that the chunk is on its way: whatever is scheduled next runs after it."""
        sequence = chunk.sequence
        sequence.num_computed_tokens = chunk.end
        sequence.num_pending_tokens += chunk.samples

    def publish(self, chunk: ScheduledChunk) -> None:
        """Makes the blocks that the chunk filled known to the prefix cache, once all their tokens are known."""
        sequence = chunk.sequence
        first_unfilled, num_filled = chunk.start // self.pool.block_size, chunk.end // self.pool.block_size
        is_held = bool(sequence.block_table) and sequence.num_preemptions == chunk.num_preemptions
        if self._prefix_caching and num_filled > first_unfilled and is_held:
            extend_block_hashes(sequence.block_hashes, sequence.token_ids, num_filled, self.pool.block_size)
            for index in range(first_unfilled, num_filled):
                self.pool.publish(sequence.block_table[index], sequence.block_hashes[index])

    def remove(self, sequence: Sequence) -> None:
        """Takes a finished or aborted sequence out and frees its blocks at once."""
        if sequence.block_table:
            self.running.remove(sequence)
            self._release(sequence)
        else:
            self.waiting.remove(sequence)

    def _budget_left(self, chunks: dict[int, ScheduledChunk]) -> int:
        return self._token_budget - sum(chunk.num_tokens for chunk in chunks.values())

    def _schedule_decodes(self, sequences: list[Sequence], chunks: dict[int, ScheduledChunk]) -> None:
        """They fit the budget: a sequence comes to decode by a chunk that the others' decodes left room for."""
        decoding = [sequence for sequence in sequences if sequence.num_uncomputed_tokens == 1]
        for sequence in decoding:
            # One whose last token is drawn, only not read yet, has nothing more to compute.
            if sequence.block_table and not sequence.is_full and self._grow(sequence, chunks):
                chunks[sequence.arrival] = ScheduledChunk.of(sequence, 1)

    def _schedule_prompts(self, chunks: dict[int, ScheduledChunk]) -> None:
        online = self.running[: num_online(self.running)]
        half_done = [sequence for sequence in online if sequence.num_uncomputed_tokens > 1]
        head_fits, budget, num_preemptions = True, self._budget_left(chunks), self.num_preemptions
        for sequence in merge(half_done, self.waiting[: num_online(self.waiting)], key=_rank):
            if self.num_preemptions > num_preemptions:
                budget, num_preemptions = self._budget_left(chunks), self.num_preemptions
            if budget <= 0:
                break
            if not sequence.block_table:
                # Nobody overtakes a waiting sequence that does not fit, or a long prompt would wait for ever.
                head_fits = head_fits and self._admit(sequence, chunks)
            if sequence.block_table:
                num_tokens = min(budget, sequence.num_uncomputed_tokens)
                chunks[sequence.arrival] = ScheduledChunk.of(sequence, num_tokens)
                budget -= num_tokens

    def _schedule_background(self, chunks: dict[int, ScheduledChunk]) -> None:
        """Decodes and then prompts, as far as the step stays within what the online requests leave of it."""
        first, first_waiting = num_online(self.running), num_online(self.waiting)
        online, background = self.running[:first], self.running[first:]
        is_any = background or len(self.waiting) > first_waiting
        if not is_any or first_waiting or any(sequence.num_uncomputed_tokens > 1 for sequence in online):
            return
        # An online sequence that is through but for the reading of its last token takes no step any more.
        limit_s = self._background.limit_s((each for each in online if not each.is_full), self._clock())
        decoding = [each for each in background if each.num_uncomputed_tokens == 1 and not each.is_full]
        decoding = decoding[: self._budget_left(chunks)]
        fitting = self._background.decodes(step_shape(list(chunks.values())), decoding, limit_s) if limit_s > 0 else 0
        if not online and not chunks:
            fitting = max(1, fitting)
        self._schedule_decodes(decoding[:fitting], chunks)
        if limit_s > 0 and fitting >= len(decoding):
            self._schedule_background_prompts(chunks, limit_s)

    def _schedule_background_prompts(self, chunks: dict[int, ScheduledChunk], limit_s: float) -> None:
        half_done = [each for each in self.running if each.is_background and each.num_uncomputed_tokens > 1]
        for sequence in merge(half_done, self.waiting[num_online(self.waiting) :], key=_rank):
            left, shape = (
                min(self._budget_left(chunks), sequence.num_uncomputed_tokens),
                step_shape(list(chunks.values())),
            )
            least = min(left, PROMPT_TOKENS)
            has_room = not chunks or self._background.prompt_tokens(shape, 0, least, limit_s) > 0
            if left <= 0 or not has_room or not (sequence.block_table or self._admit(sequence, chunks)):
                return
            start, left = sequence.num_computed_tokens, min(left, sequence.num_uncomputed_tokens)
            num_tokens = self._background.prompt_tokens(shape, start, left, limit_s)
            num_tokens = num_tokens or (0 if chunks else min(left, PROMPT_TOKENS))
            if num_tokens == 0:
                return
            chunks[sequence.arrival] = ScheduledChunk.of(sequence, num_tokens)

    def _grow(self, sequence: Sequence, chunks: dict[int, ScheduledChunk]) -> bool:
        """One more block where the last is full; False when the sequence itself had to give way."""
        if sequence.num_tokens <= len(sequence.block_table) * self.pool.block_size:
            return True
        while self.pool.num_free == 0:
            victim = self.running[-1]
            self._preempt(victim, chunks)
            if victim is sequence:
                return False
        sequence.block_table += self.pool.allocate(1)
        return True

    def _admit(self, sequence: Sequence, chunks: dict[int, ScheduledChunk]) -> bool:
        """Moves a waiting sequence to the running if it fits, preempting those of larger rank if that makes it fit."""
        if sequence.num_pending_tokens:  # preempted a step ago: it is prefilled with a token not known yet
            return False
        cached = self._cached_prefix(sequence)
        wanted = self._blocks_wanted(sequence, cached)
        victims = [running for running in self.running if running.rank > sequence.rank]
        keepers = len(self.running) - len(victims)
        freed = sum(self.pool.num_sole(set(victim.block_table).difference(cached)) for victim in victims)
        if keepers >= self._max_sequences or wanted + keepers > self.pool.num_free + freed:
            return False
        while len(self.running) >= self._max_sequences or wanted + len(self.running) > self.pool.num_free:
            self._preempt(self.running[-1], chunks)
            wanted = self._blocks_wanted(sequence, cached)
        self._start(sequence, cached)
        return True

    def _start(self, sequence: Sequence, cached: list[int]) -> None:
        self.pool.share(cached)
        num_blocks = self.pool.blocks_for(len(sequence.token_ids))
        sequence.block_table = cached + self.pool.allocate(num_blocks - len(cached))
        sequence.num_computed_tokens = len(cached) * self.pool.block_size
        if sequence.num_preemptions == 0:
            sequence.num_cached_tokens = sequence.num_computed_tokens
            self.num_prefix_hit_tokens += sequence.num_computed_tokens
        sequence.slot = self._free_slots.pop()
        self.waiting.remove(sequence)
        insort(self.running, sequence, key=_rank)

    def _cached_prefix(self, sequence: Sequence) -> list[int]:
        """Known blocks for the sequence's beginning; at least its last token is computed again, for its logits."""
        if not self._prefix_caching or sequence.request.sampling.prompt_logprobs is not None:
            return []
        num_blocks = (len(sequence.token_ids) - 1) // self.pool.block_size
        extend_block_hashes(sequence.block_hashes, sequence.token_ids, num_blocks, self.pool.block_size)
        return self.pool.lookup(sequence.block_hashes[:num_blocks])

    def _blocks_wanted(self, sequence: Sequence, cached: list[int]) -> int:
        """Free blocks that admission takes. Callers add one for each running sequence, the next it will ask for: to
        admit into the last free block is to preempt a step later."""
        num_blocks = self.pool.blocks_for(len(sequence.token_ids))
        return num_blocks - len(cached) + self.pool.num_idle(cached)

    def _preempt(self, victim: Sequence, chunks: dict[int, ScheduledChunk]) -> None:
        chunks.pop(victim.arrival, None)
        self.running.remove(victim)
        self._release(victim)
        insort(self.waiting, victim, key=_rank)
        victim.num_preemptions += 1
        self.num_preemptions += 1

    def _release(self, sequence: Sequence) -> None:
        self.pool.release(sequence.block_table)
        self._free_slots.append(sequence.slot)
        sequence.block_table, sequence.slot = [], -1
        sequence.num_computed_tokens = 0
