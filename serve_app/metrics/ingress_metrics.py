"""IngressMetrics: what waits in an ingress, and the scaling decision that it knows; it follows no request."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, get_args

from autoscaling.sustained import SustainedBound
from cluster.metric_catalogue import CATALOGUE, Metric
from serve_app.metrics.meter import Meter

PERIOD_S = 1.0
BOUNDS = tuple(bound.lower() for bound in get_args(SustainedBound))

Labels = tuple[tuple[str, str], ...]


class IngressMetrics:
    def __init__(
        self,
        meter: Meter,
        at_start: Mapping[str, int],
        waiting: Callable[[], int],
        decision: Callable[[], Mapping[str, Any] | None],
    ) -> None:
        """`at_start`: replicas by variant, which stay without a planner; `waiting` requests; `decision` as
        DecisionFeed.describe has it, None where there is none."""
        self._meter = meter
        self._at_start = at_start
        self._waiting = waiting
        self._decision = decision
        self._decided_at_s: float | None = None
        self._told: set[tuple[Metric, Labels]] = set()

    async def tell_forever(self) -> None:
        while True:
            self.tell(time.time())
            await asyncio.sleep(PERIOD_S)

    def tell(self, now_s: float) -> None:
        """`now_s`: Unix time; the decision's is that of the controller's host, whose clock may differ."""
        self._meter.set(CATALOGUE.waiting, self._waiting())
        decision = self._decision()
        for variant, count in (self._at_start if decision is None else decision["replicas"]).items():
            self._meter.set(CATALOGUE.target_replicas, count, variant=variant)
        if decision is None:
            return
        self._meter.set(CATALOGUE.decision_age, max(0.0, now_s - decision["decided_at_s"]))
        if decision["decided_at_s"] != self._decided_at_s:
            self._decided_at_s = decision["decided_at_s"]
            self._tell_loads(decision["loads"])

    def _tell_loads(self, loads: Sequence[Mapping[str, Any]]) -> None:
        """A class that is planned for no more, or elsewhere, needs nothing there: a gauge keeps what it was."""
        told: dict[tuple[Metric, Labels], float] = {}
        for load in loads:
            slo_class, where = load["slo_class"], {"slo_class": load["slo_class"], "variant": load["variant"]}
            told[CATALOGUE.demand, _labels(slo_class=slo_class)] = load["requests_per_s"]
            for bound in ("kv", "rate"):
                told[CATALOGUE.needed_replicas, _labels(bound=bound, **where)] = load[f"{bound}_replicas"]
            for bound in BOUNDS:
                told[CATALOGUE.binding, _labels(bound=bound, **where)] = bound == load["bound"].lower()
        for (metric, labels), value in (dict.fromkeys(self._told, 0.0) | told).items():
            self._meter.set(metric, value, **dict(labels))
        self._told |= told.keys()


def _labels(**labels: str) -> Labels:
    return tuple(labels.items())
