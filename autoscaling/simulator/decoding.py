"""Decoding: sums over the sequences that gain a token a step, so that n steps cost what one does; it knows no time."""

from __future__ import annotations

from heapq import heappop, heappush

from autoscaling.simulator.sequence import SimulatedSequence
from cluster.rank import Rank


class Growth:
    """The blocks that decoding sequences take, step by step."""

    def __init__(self, block_size: int) -> None:
        self.num_sequences = 0
        self._block_size = block_size
        self._wanting = [0] * (2 * block_size)
        """Sequences by the step, modulo the block size, before which their last block is full; twice over."""

    def count(self, phase: int, change: int) -> None:
        """`phase`: of the steps that want a block, modulo the block size."""
        self.num_sequences += change
        self._wanting[phase] += change
        self._wanting[phase + self._block_size] += change

    def at(self, step: int) -> int:
        """Blocks that this step takes."""
        return self._wanting[step % self._block_size]

    def after(self, step: int, repeats: int) -> int:
        """Blocks that are taken by so many steps from this one on, but for the first."""
        cycles, rest = divmod(repeats - 1, self._block_size)
        first = (step + 1) % self._block_size
        return cycles * self.num_sequences + sum(self._wanting[first : first + rest])


class Decoding:
    """A decoding sequence is kept as of the step it joined at; what it is by now follows from the steps made since."""

    def __init__(self, block_size: int) -> None:
        self.step = 0
        """Steps made."""
        self.growth = Growth(block_size)
        self.growth_of_throughput = Growth(block_size)
        """Of the sequences of a throughput objective among them."""
        self._block_size = block_size
        self._tokens_less_steps = 0
        self._ends: list[tuple[int, Rank, int, SimulatedSequence]] = []

    @property
    def num_sequences(self) -> int:
        return self.growth.num_sequences

    @property
    def kv_tokens(self) -> int:
        """That the next step reads."""
        return self._tokens_less_steps + self.growth.num_sequences * self.step

    def join(self, sequence: SimulatedSequence) -> None:
        sequence.joined_step = self.step
        self._tokens_less_steps += sequence.num_tokens - self.step
        self._count(sequence, 1)
        end = self.step + sequence.end_tokens - sequence.num_tokens
        heappush(self._ends, (end, sequence.rank, sequence.num_preemptions, sequence))

    def leave(self, sequence: SimulatedSequence) -> None:
        """Its tokens and blocks are written out again, as after the last step made."""
        self._tokens_less_steps -= sequence.num_tokens - sequence.joined_step
        self._count(sequence, -1)
        sequence.num_tokens += self.step - sequence.joined_step
        sequence.num_computed_tokens = sequence.num_tokens - 1
        sequence.num_blocks = -(-(sequence.num_tokens - 1) // self._block_size)
        sequence.joined_step = -1

    def advance(self, steps: int) -> list[SimulatedSequence]:
        """Steps were made; those that have all their tokens leave, in order of rank."""
        self.step += steps
        ended, ends = [], self._ends
        while ends and ends[0][0] <= self.step:
            _, _, num_preemptions, sequence = heappop(ends)
            if sequence.joined_step >= 0 and sequence.num_preemptions == num_preemptions:
                self.leave(sequence)
                ended.append(sequence)
        return ended

    def tokens(self, sequence: SimulatedSequence) -> int:
        return sequence.num_tokens + (self.step - sequence.joined_step if sequence.joined_step >= 0 else 0)

    def wants_block(self, sequence: SimulatedSequence) -> bool:
        """Whether its last block is full before the next step."""
        return sequence.joined_step >= 0 and (self.tokens(sequence) - 1) % self._block_size == 0

    def most_repeats(self, num_free: int) -> int:
        """Steps until a sequence ends, or a block is wanted and none is free."""
        growth = self.growth
        most = self._first_end() - self.step
        if growth.after(self.step, most) <= num_free:
            return most
        cycles, num_free = divmod(num_free, growth.num_sequences)
        repeats = 1 + cycles * self._block_size
        while (wanted := growth.at(self.step + repeats)) <= num_free:
            num_free -= wanted
            repeats += 1
        return repeats

    def _first_end(self) -> int:
        while self._ends[0][3].joined_step < 0 or self._ends[0][3].num_preemptions != self._ends[0][2]:
            heappop(self._ends)
        return self._ends[0][0]

    def _count(self, sequence: SimulatedSequence, change: int) -> None:
        """Its last block is full before a step at which it has a token more than a multiple of the block size."""
        phase = (1 - sequence.num_tokens + sequence.joined_step) % self._block_size
        self.growth.count(phase, change)
        if sequence.is_throughput:
            self.growth_of_throughput.count(phase, change)
