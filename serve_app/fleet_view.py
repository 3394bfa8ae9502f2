"""The fleet as an ingress sees it: which replicas run, what they last said, the way to each; it sends no request."""

from __future__ import annotations

import asyncio
import contextvars
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ray.serve.exceptions import DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

from cluster.load import Load
from cluster.routing import SloRouter
from serve_app.replica_link import ReplicaLink, VariantHandles
from serve_app.wire import decode_load

POLL_PERIOD_S = 1.0
POLL_TIMEOUT_S = 3.0
GONE_AFTER_S = 6.0
"""A replica that neither answers nor streams for so long is forgotten, whatever Serve still believes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Heard:
    load: Load
    at_s: float


class FleetView:
    """Loads come with every frame; a poll once a second brings those of idle replicas.

    The poll is a broadcast: it reaches the replicas that Serve holds for running, so their answers are also the list
    of them, without a look into Serve's insides. One that is missing there and streams on is being stopped: it is
    chosen no more, and forgotten when its streams have ended.
    """

    def __init__(self, handles: Mapping[str, DeploymentHandle], router: SloRouter, ingress_id: str) -> None:
        self.router = router
        self._handles = {variant: VariantHandles.of(variant, handle) for variant, handle in handles.items()}
        self._ingress_id = ingress_id
        self._links: dict[str, ReplicaLink] = {}
        self._heard: dict[str, Heard] = {}
        self._stopping: dict[str, float] = {}
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """One poll a variant, each in a context of its own: they belong to no request."""
        self._tasks = [
            asyncio.create_task(self._poll_forever(handles), context=contextvars.Context())
            for handles in self._handles.values()
        ]

    def stop(self) -> None:
        for task in self._tasks:
            task.cancel()

    def link(self, replica_id: str) -> ReplicaLink:
        return self._links[replica_id]

    def loads(self, variant: str) -> list[Load]:
        """Of the replicas that take requests."""
        return [load for load in self._all_loads(variant) if load.replica_id not in self._stopping]

    def draining(self) -> dict[str, int]:
        """By variant, the replicas that Serve stops and that still stream to this ingress."""
        counts = dict.fromkeys(self._handles, 0)
        for replica_id in self._stopping:
            counts[self._links[replica_id].variant] += self._links[replica_id].in_flight > 0
        return counts

    def stops(self, replica_id: str) -> None:
        """Serve stops it: nothing new is sent there, what runs there goes on."""
        link = self._links.get(replica_id)
        if link is not None and replica_id not in self._stopping:
            self.router.remove(replica_id)
            self._stopping[replica_id] = time.monotonic()
            link.stops()

    def forget(self, replica_id: str, reason: str) -> None:
        """It is gone: nothing is sent there any more, and what runs there ends."""
        self.router.remove(replica_id)
        self._heard.pop(replica_id, None)
        self._stopping.pop(replica_id, None)
        link = self._links.pop(replica_id, None)
        if link is not None:
            link.fail(reason)

    def fail_all(self, reason: str) -> None:
        for link in self._links.values():
            link.end(reason)

    def describe(self, variant: str) -> list[dict[str, Any]]:
        """A variant's replicas for GET /v1/fleet."""
        now_s = time.monotonic()
        return [
            {
                **asdict(load),
                "kv_tokens_free": load.kv_tokens_free,
                "age_s": round(now_s - self._heard[load.replica_id].at_s, 3),
                "in_flight": self._links[load.replica_id].in_flight,
                "state": "draining" if load.replica_id in self._stopping else "ready",
            }
            for load in self._all_loads(variant)
        ]

    def _all_loads(self, variant: str) -> list[Load]:
        loads = (heard.load for heard in self._heard.values() if heard.load.variant == variant)
        return sorted(loads, key=lambda load: load.replica_id)

    def _on_load(self, load: Load) -> None:
        if load.replica_id not in self._links:
            return  # the last words of one that was forgotten: the router must not choose it again
        now_s = time.monotonic()
        self._heard[load.replica_id] = Heard(load=load, at_s=now_s)
        if load.replica_id not in self._stopping:
            self.router.update(load, now_s)

    async def _poll_forever(self, handles: VariantHandles) -> None:
        while True:
            try:
                await self._poll(handles)
            except DeploymentUnavailableError:  # no replica runs
                self._stop_others(handles.variant, frozenset())
            except Exception:  # the broadcast failed: what is silent for too long is forgotten
                self._forget_silent(handles.variant)
            await asyncio.sleep(POLL_PERIOD_S)

    async def _poll(self, handles: VariantHandles) -> None:
        began_s = time.monotonic()
        answers = await handles.load.broadcast("load").results_async(timeout_s=POLL_TIMEOUT_S, return_exceptions=True)
        loads = [decode_load(answer) for answer in answers if isinstance(answer, bytes)]
        for load in loads:
            if load.replica_id not in self._links:
                self._links[load.replica_id] = ReplicaLink(
                    handles, load.replica_id, self._ingress_id, self._on_load, self.forget
                )
            if self._stopping.get(load.replica_id, began_s) < began_s:
                # It only seemed so: a new replica that the submissions' handle had not heard of.
                del self._stopping[load.replica_id]
                self._links[load.replica_id].goes_on()
            self._on_load(load)
        if len(loads) == len(answers):  # else one of them runs and could not say so
            self._stop_others(handles.variant, frozenset(load.replica_id for load in loads))
        self._forget_silent(handles.variant)

    def _stop_others(self, variant: str, running: frozenset[str]) -> None:
        for replica_id in [name for name, link in self._links.items() if link.variant == variant]:
            if replica_id not in running:
                self.stops(replica_id)
                if not self._links[replica_id].in_flight:
                    self.forget(replica_id, "Serve has stopped it")

    def _forget_silent(self, variant: str) -> None:
        now_s = time.monotonic()
        for load in self.loads(variant):
            # One that stops is polled no more, and a long prompt has no frames: its channel tells when it is gone.
            if now_s - self._heard[load.replica_id].at_s > GONE_AFTER_S:
                self.forget(load.replica_id, "it has not answered for some seconds")
