"""FleetTable: a router's ReplicaViews as arrays, kept up to date row by row; it predicts and chooses nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from math import inf

import numpy as np
from numpy.typing import NDArray

from cluster.assessment import AssessedReplicas
from cluster.cost_model import CostModel
from cluster.prediction_kernel import DECODING, RATE, RATIO, WAITING, Floats
from cluster.replica_view import ReplicaView

NUM_FIELDS = 10
PROMISE, RECEIVED = 8, 9
"""Rows of the matrix; those before them are backlogs as the kernel reads them."""


class FleetTable:
    """Of these replicas and no others, in this order."""

    def __init__(self, views: Sequence[ReplicaView], models: Mapping[str, CostModel], num_ingresses: int) -> None:
        self.views = views
        self.models = models
        self.replicas = AssessedReplicas.of(
            [view.load.replica_id for view in views], [models[view.load.variant] for view in views]
        )
        self.one_of_each = AssessedReplicas.of(list(models), list(models.values()))
        """Of each variant, whether any runs or not."""
        self._num_ingresses = num_ingresses
        self._matrix = np.empty((NUM_FIELDS, len(views)))
        self._place = {view.load.replica_id: place for place, view in enumerate(views)}
        self.refresh(self._place)
        self._all = np.ones(len(views), dtype=bool)

    def refresh(self, changed: Iterable[str]) -> None:
        """The rows of these replicas, as far as they are here."""
        for replica_id in changed:
            place = self._place.get(replica_id)
            if place is not None:
                self._matrix[:, place] = _row(self.views[place], self._num_ingresses)

    @property
    def received_s(self) -> Floats:
        received_s: Floats = self._matrix[RECEIVED]
        return received_s

    @property
    def promised_tpot_ms(self) -> Floats:
        promised_ms: Floats = self._matrix[PROMISE]
        return promised_ms

    def ready(self, exclude: Set[str], variant: str | None) -> NDArray[np.bool_]:
        """All but those; of one variant, where it is named."""
        if not exclude and variant is None:
            return self._all
        loads = [view.load for view in self.views]
        return np.array([load.replica_id not in exclude and variant in (None, load.variant) for load in loads], bool)

    def has_room(self, max_requests: int) -> NDArray[np.bool_]:
        """All but those that have as many requests as they take, to this router's knowledge."""
        has_room: NDArray[np.bool_] = self._matrix[DECODING] + self._matrix[WAITING] < max_requests
        return has_room

    def backlogs(self, fresh_since_s: float) -> Floats:
        """Of a Load received before then no rates."""
        values: Floats = self._matrix[:PROMISE]
        stale = self.received_s < fresh_since_s
        if np.count_nonzero(stale):
            values = values.copy()
            values[RATE, stale] = 0.0
            values[RATIO, stale] = 1.0
        return values


def _row(view: ReplicaView, num_ingresses: int) -> tuple[float, ...]:
    backlog = view.backlog(fresh=True, num_ingresses=num_ingresses)
    promise_ms = view.tightest_tpot_ms()
    return (
        backlog.kv_capacity_tokens,
        backlog.kv_used_tokens,
        backlog.kv_promised_tokens,
        backlog.decoding,
        backlog.waiting,
        backlog.prefill_tokens,
        backlog.prefill_tokens_per_s,
        backlog.step_time_ratio,
        inf if promise_ms is None else promise_ms,
        view.received_s,
    )
