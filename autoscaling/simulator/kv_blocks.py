"""How many KV blocks of a replica are held, cached and empty, as engine.kv_cache has them; it knows no block by number.

Which block holds what makes no difference to a schedule, only how many are free and which contents the prefix cache
still has. Blocks that only their own sequence can know (its output, a prompt that no other shares) are counted
together, so that a request costs the same whatever its length; blocks of a shared prefix are kept one by one. One case
differs by some blocks: a preempted sequence whose shared prefix was evicted meanwhile, but not its own blocks.
"""

from __future__ import annotations

from collections import OrderedDict

from autoscaling.simulator.sequence import SimulatedSequence


class KvBlocks:
    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.num_free = num_blocks
        """Empty or cached."""
        self.num_cached = 0
        self._cached: OrderedDict[SimulatedSequence | int, int] = OrderedDict()
        """Least recently used first: a shared block, or so many blocks of a sequence's own, the last of them first."""
        self._holders: dict[int, int] = {}
        """Of each shared block whose contents are known."""

    @property
    def num_used(self) -> int:
        return self.num_blocks - self.num_free

    def blocks_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.block_size)

    def take(self, count: int) -> None:
        """Empty ones first, then those that were not used for longest."""
        assert count <= self.num_free, f"{count} blocks wanted, {self.num_free} free"
        self.num_free -= count
        count = self.num_cached - self.num_free
        if count <= 0:
            return
        self.num_cached = self.num_free
        cached = self._cached
        while count:
            key = next(iter(cached))
            available = cached[key]
            if available > count:
                cached[key] = available - count
                return
            del cached[key]
            count -= available
            if isinstance(key, int):
                del self._holders[key]

    def known_prefix(self, sequence: SimulatedSequence) -> int:
        """Blocks of its beginning that the cache can give; at least its last token is computed again."""
        if not sequence.shared_blocks and not sequence.num_preemptions:
            return 0
        most = (sequence.num_tokens - 1) // self.block_size
        shared = sequence.shared_blocks
        if shared:
            for index in range(min(most, len(shared))):
                if shared[index] not in self._holders:
                    return index
            if most <= len(shared):
                return most
        return len(shared) + min(self._cached.get(sequence, 0), most - len(shared))

    def num_idle(self, sequence: SimulatedSequence, known: int) -> int:
        """How many of these first blocks nobody holds."""
        if not known:
            return 0
        shared = sequence.shared_blocks[:known]
        return known - len(shared) + sum(self._holders[key] == 0 for key in shared)

    def num_sole(self, victim: SimulatedSequence, num_blocks: int, kept: frozenset[int]) -> int:
        """How many of its blocks would be free without it, but for those of `kept`."""
        if not victim.shared_blocks:
            return num_blocks
        shared = zip(victim.shared_blocks[:num_blocks], victim.holds_shared, strict=False)
        others = sum(holds and (self._holders[key] > 1 or key in kept) for key, holds in shared)
        return num_blocks - others

    def admit(self, sequence: SimulatedSequence, known: int, num_blocks: int) -> None:
        """Shares its first `known` blocks and takes the others."""
        shared = sequence.shared_blocks
        own = self._cached.pop(sequence, 0)
        if shared:
            sequence.holds_shared = [index < known for index in range(len(shared))]
            for key in shared[:known]:
                if self._holders[key] == 0:
                    del self._cached[key]
                    self.num_cached -= 1
                    self.num_free -= 1
                self._holders[key] += 1
        # Not all of its own need be hit: where a block of the prefix before them is gone, they can be found no more.
        self.num_cached -= own
        self.num_free -= max(0, known - len(shared))
        self.take(num_blocks - known)

    def publish(self, sequence: SimulatedSequence, start: int, end: int) -> None:
        """The blocks of a shared prefix that the tokens from start to end filled are known from now on."""
        for index in range(start // self.block_size, min(end // self.block_size, len(sequence.shared_blocks))):
            key = sequence.shared_blocks[index]
            if not sequence.holds_shared[index] and key not in self._holders:
                self._holders[key] = 1
                sequence.holds_shared[index] = True

    def release(self, sequence: SimulatedSequence, num_blocks: int, num_computed_tokens: int) -> None:
        """Its end first, which is worth less than its beginning."""
        shared = sequence.shared_blocks
        own = max(0, num_blocks - len(shared))
        known = max(0, num_computed_tokens // self.block_size - len(shared))
        self.num_free += own
        if known:
            self._cached[sequence] = known
            self.num_cached += known
        for index in range(min(num_blocks, len(shared)) - 1, -1, -1):
            if not sequence.holds_shared[index]:
                self.num_free += 1
                continue
            key = shared[index]
            self._holders[key] -= 1
            if self._holders[key] == 0:
                self._cached[key] = 1
                self.num_cached += 1
                self.num_free += 1
