"""IngressMetrics: what waits in an ingress, and the scaling decision that it knows; it follows no request."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import Any

from serve_app.metrics.catalogue import CATALOGUE
from serve_app.metrics.meter import Meter

PERIOD_S = 1.0


class IngressMetrics:
    def __init__(
        self, meter: Meter, waiting: Callable[[], int], decision: Callable[[], Mapping[str, Any] | None]
    ) -> None:
        """`waiting` requests; `decision` as DecisionFeed.describe has it, None where there is none."""
        self._meter = meter
        self._waiting = waiting
        self._decision = decision

    async def tell_forever(self) -> None:
        while True:
            self.tell(time.time())
            await asyncio.sleep(PERIOD_S)

    def tell(self, now_s: float) -> None:
        """`now_s`: Unix time; the decision's is that of the controller's host, whose clock may differ."""
        self._meter.set(CATALOGUE.waiting, self._waiting())
        decision = self._decision()
        if decision is None:
            return
        self._meter.set(CATALOGUE.decision_age, max(0.0, now_s - decision["decided_at_s"]))
        for variant, count in decision["replicas"].items():
            self._meter.set(CATALOGUE.target_replicas, count, variant=variant)
