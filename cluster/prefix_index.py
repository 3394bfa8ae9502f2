"""PrefixIndex: which replica was sent which prefixes, the least recently used forgotten first; it picks none."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence


class PrefixIndex:
    """What one router knows of replicas' prefix caches: its own dispatches, as far as a replica's cache can hold them.

    A hash names all tokens up to its end (cluster/prefix_hash.py), and a replica that has it has those before it: a
    prefix is touched from its end to its beginning, so that its end is forgotten first.
    """

    def __init__(self) -> None:
        self._of_replica: dict[str, OrderedDict[int, None]] = {}
        self._holders: dict[int, set[str]] = {}

    def dispatched(self, replica_id: str, prefix: Sequence[int], most_hashes: int) -> None:
        """`most_hashes`: of this replica, as many as fill its cache."""
        if not prefix:
            return
        known = self._of_replica.setdefault(replica_id, OrderedDict())
        for name in reversed(prefix):
            if name in known:
                known.move_to_end(name)
            else:
                known[name] = None
                self._holders.setdefault(name, set()).add(replica_id)
        while len(known) > most_hashes:
            self._drop(known.popitem(last=False)[0], replica_id)

    def lengths(self, prefix: Sequence[int]) -> dict[str, int]:
        """By replica, how many hashes of this prefix it holds; those with the longest come first."""
        chain: list[set[str]] = []
        for name in prefix:
            holders = self._holders.get(name)
            if holders is None:
                break
            chain.append(holders)
        found: dict[str, int] = {}
        for length in range(len(chain), 0, -1):
            if len(chain[length - 1]) > len(found):  # whoever holds more holds this much
                for replica_id in chain[length - 1]:
                    found.setdefault(replica_id, length)
        return found

    def forget(self, replica_id: str) -> None:
        for name in self._of_replica.pop(replica_id, ()):
            self._drop(name, replica_id)

    def _drop(self, name: int, replica_id: str) -> None:
        holders = self._holders[name]
        holders.discard(replica_id)
        if not holders:
            del self._holders[name]
