"""The pool of KV-cache blocks: who holds which, what the prefix cache can give again; it knows no tensors.

A block is in one of three states: held (reference count >= 1), cached (no holder, contents still known by hash) or
empty. Cached blocks count as free: they are handed out, least recently used first, when no empty one is left.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from hashlib import blake2b

ROOT_HASH = b""
"""The parent of a sequence's first block."""


def hash_block(parent: bytes, token_ids: Sequence[int]) -> bytes:
    """Names a full block by all tokens up to its end, with 16 bytes of BLAKE2b: nobody finds two that meet."""
    return blake2b(parent + array("q", token_ids).tobytes(), digest_size=16).digest()


def extend_block_hashes(hashes: list[bytes], token_ids: Sequence[int], num_blocks: int, block_size: int) -> None:
    """Appends the chained hashes of a sequence's full blocks until there are `num_blocks` of them."""
    for index in range(len(hashes), num_blocks):
        parent = hashes[-1] if hashes else ROOT_HASH
        hashes.append(hash_block(parent, token_ids[index * block_size : (index + 1) * block_size]))


class BlockPool:
    """Reference-counted blocks with a prefix cache over those that are full and computed."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        if num_blocks < 1 or block_size < 1:
            raise ValueError(f"a KV cache needs a block of a token at least, got {num_blocks} blocks of {block_size}")
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._ref_counts = [0] * num_blocks
        self._hashes: list[bytes | None] = [None] * num_blocks
        self._block_of_hash: dict[bytes, int] = {}
        self._empty = list(range(num_blocks - 1, -1, -1))
        self._cached: OrderedDict[int, None] = OrderedDict()

    @property
    def num_free(self) -> int:
        """Blocks that can be allocated now, the cached ones included."""
        return len(self._empty) + len(self._cached)

    @property
    def num_used(self) -> int:
        return self.num_blocks - self.num_free

    @property
    def num_cached(self) -> int:
        return len(self._cached)

    def blocks_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.block_size)

    def lookup(self, hashes: Iterable[bytes]) -> list[int]:
        """The blocks of the longest known prefix; they are not held until `share` is called."""
        blocks: list[int] = []
        for block_hash in hashes:
            block = self._block_of_hash.get(block_hash)
            if block is None:
                break
            blocks.append(block)
        return blocks

    def num_idle(self, blocks: Iterable[int]) -> int:
        """How many of these blocks nobody holds, so that sharing them takes them from the free ones."""
        return sum(self._ref_counts[block] == 0 for block in blocks)

    def num_sole(self, blocks: Iterable[int]) -> int:
        """How many of these blocks have one holder, so that its release makes them free."""
        return sum(self._ref_counts[block] == 1 for block in blocks)

    def share(self, blocks: Iterable[int]) -> None:
        """Takes one more reference on full blocks that `lookup` gave."""
        for block in blocks:
            assert self._hashes[block] is not None, "only a full, computed block may be shared"
            self._cached.pop(block, None)
            self._ref_counts[block] += 1

    def allocate(self, num_blocks: int) -> list[int]:
        """Takes blocks to write into; the caller has looked at `num_free` before."""
        assert num_blocks <= self.num_free, f"{num_blocks} blocks wanted, {self.num_free} free"
        blocks = [self._empty.pop() if self._empty else self._evict() for _ in range(num_blocks)]
        for block in blocks:
            self._ref_counts[block] = 1
        return blocks

    def release(self, blocks: Sequence[int]) -> None:
        """Gives up one reference on each, the last first: the end of a prefix is worth less than its beginning."""
        for block in reversed(blocks):
            self._ref_counts[block] -= 1
            assert self._ref_counts[block] >= 0, f"block {block} released twice"
            if self._ref_counts[block] == 0:
                if self._hashes[block] is None:
                    self._empty.append(block)
                else:
                    self._cached[block] = None

    def publish(self, block: int, block_hash: bytes) -> None:
        """Makes a full, computed block known to the prefix cache; one of the same contents that is known stays."""
        assert self._ref_counts[block] > 0, f"block {block} is published without a holder"
        if self._hashes[block] is None and block_hash not in self._block_of_hash:
            self._hashes[block] = block_hash
            self._block_of_hash[block_hash] = block

    def forget(self) -> None:
        """Drops all cached contents that nobody holds (a measurement that must not meet an earlier one's blocks)."""
        while self._cached:
            self._empty.append(self._evict())

    def _evict(self) -> int:
        block, _ = self._cached.popitem(last=False)
        block_hash = self._hashes[block]
        assert block_hash is not None
        del self._block_of_hash[block_hash]
        self._hashes[block] = None
        return block
