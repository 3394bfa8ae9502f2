"""What a request of a latency objective finds before it at replicas that have throughput requests; it predicts nothing.

It is computed before them (cluster/rank.py) and takes their places and blocks where it needs them, so of a backlog
their prompts, their promises and their KV are not in its way; their decodes are in the batch that it joins.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from cluster.prediction_kernel import CAPACITY, PREFILL, PROMISED, WAITING, Floats
from cluster.replica_view import ReplicaView

NUM_ROWS = 8
"""Of backlogs."""


class Overtaking:
    """Of the replicas of a FleetTable, in its order."""

    def __init__(self, views: Sequence[ReplicaView], *, num_ingresses: int, max_sequences: int) -> None:
        self._views = views
        self._num_ingresses = num_ingresses
        self._max_sequences = max_sequences
        self._place = {view.load.replica_id: place for place, view in enumerate(views)}
        self._less: Floats = np.zeros((NUM_ROWS, len(views)))
        """What is taken off the backlogs, in their rows and columns."""
        self._busy: set[int] = set()
        self.refresh(self._place)

    def refresh(self, changed: Iterable[str]) -> None:
        """The columns of these replicas, as far as they are here."""
        for replica_id in changed:
            place = self._place.get(replica_id)
            if place is None:
                continue
            if self._views[place].has_throughput:
                self._busy.add(place)
                self._fill(place)
            elif place in self._busy:
                self._busy.remove(place)
                self._less[:, place] = 0.0

    def backlogs(self, backlogs: Floats) -> Floats:
        """Columns as a latency request finds them, of those that all find."""
        return backlogs - self._less if self._busy else backlogs

    def _fill(self, place: int) -> None:
        view, less = self._views[place], self._less
        behind, load = view.of_throughput(self._num_ingresses), view.load
        less[CAPACITY, place] = -behind.kv_tokens
        less[PROMISED, place] = behind.promised_tokens
        less[PREFILL, place] = behind.prefill_tokens
        # As many give up their place, or go on waiting, as there are too many: a batch is full, and has room for it.
        waiting = load.waiting_requests + self._num_ingresses * len(view.online_since())
        surplus = max(0, load.decode_sequences + waiting + 1 - self._max_sequences)
        less[WAITING, place] = min(behind.sequences + behind.waiting, surplus)
