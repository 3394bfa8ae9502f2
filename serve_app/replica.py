"""Replica: the Serve deployment around one engine process; it decodes no text, chooses nothing and imports no torch."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from dataclasses import replace

from ray import serve

from autoscaling.serving_stats import Stats, load_stats
from cluster.engine_spec import EngineSpec
from cluster.load import Load
from cluster.request import GenerationRequest, Verdict
from engine.process import EngineDied, EngineProcess
from engine.wire import StepMessage
from serve_app.metrics.meter import Meter
from serve_app.metrics.replica_metrics import ReplicaMetrics
from serve_app.outbox import Outbox
from serve_app.wire import Answer, decode_submission, encode

log = logging.getLogger("ray.serve")

ORPHANED_AFTER_S = 5.0
"""An ingress that has requests here and no channel for so long is gone; its requests are aborted."""
METRICS_PERIOD_S = 1.0
"""Prometheus scrapes every 15 s by default; Ray's agents gather every 10 s."""


class Replica:
    """Every method takes `replica_id`, which ReplicaPin routes by."""

    async def __init__(self, spec: EngineSpec, meter: Meter) -> None:
        replica_id = serve.get_replica_context().replica_id.unique_id
        self._engine = EngineProcess.start(replace(spec, replica_id=replica_id))
        await self._engine.ready()
        self._outboxes: dict[str, Outbox] = {}
        self._owners: dict[str, Outbox] = {}
        self._died: EngineDied | None = None
        self._metrics = ReplicaMetrics(meter, spec.variant.name, spec.share, time.monotonic())
        self._tasks = [
            asyncio.create_task(self._distribute()),
            asyncio.create_task(self._abort_orphans()),
            asyncio.create_task(self._tell_metrics()),
        ]

    async def submit(self, submission: bytes, replica_id: str) -> bytes:
        """Admits all sequences of a request or none; the answer is the replica's first message. Raises EngineDied."""
        wanted = decode_submission(submission)
        ids = [request.request_id for request in wanted.requests]
        outbox = self._outboxes.setdefault(wanted.ingress_id, Outbox(self._load))
        outbox.add(ids)
        self._owners.update(dict.fromkeys(ids, outbox))
        answer = await self._admit(wanted.requests)
        if not answer.verdict.admitted:
            await self._forget(ids)
        return encode(answer)

    async def channel(self, ingress_id: str, replica_id: str) -> AsyncIterator[bytes]:
        """The deltas of all of an ingress's sequences, one frame a step; it ends when there is no work for a moment."""
        async for frame in self._outboxes.setdefault(ingress_id, Outbox(self._load)).frames():
            yield frame

    async def abort(self, request_ids: list[str], replica_id: str) -> None:
        await self._forget(request_ids)

    async def load(self) -> bytes:
        """Not pinned: the ingresses broadcast it, and so learn which replicas run."""
        if self._died is not None:
            raise self._died
        return encode(self._load())

    def record_autoscaling_stats(self) -> Stats:
        """For the scaling policy; Serve asks once a second."""
        return load_stats(self._load())

    def check_health(self) -> None:
        """Serve replaces the replica when this raises."""
        if self._died is not None:
            raise self._died

    async def __del__(self) -> None:
        """Serve calls it when the requests in flight have ended, or their time has."""
        for task in self._tasks:
            task.cancel()
        await self._engine.stop()

    def _load(self) -> Load:
        assert self._engine.load is not None, "a replica serves after ready()"
        return self._engine.load

    async def _admit(self, requests: list[GenerationRequest]) -> Answer:
        results = await asyncio.gather(*map(self._engine.submit, requests), return_exceptions=True)
        for result in results:
            if isinstance(result, ValueError):
                refused = Verdict(admitted=False, reason="invalid", load=self._load())
                return Answer(verdict=refused, invalid=str(result))
            if isinstance(result, BaseException):
                raise result
            if not result.admitted:
                return Answer(verdict=result)
        return Answer(verdict=results[-1])

    async def _forget(self, request_ids: list[str]) -> None:
        for request_id in request_ids:
            outbox = self._owners.pop(request_id, None)
            if outbox is not None:
                outbox.drop(request_id)
                if self._died is None:
                    self._engine.abort(request_id)

    async def _distribute(self) -> None:
        try:
            async for message in self._engine.messages():
                self._hand_out(message)
        except EngineDied as died:
            log.error("the engine process ended: %s", died)
            self._died = died
            self._fail_all(str(died))

    def _hand_out(self, message: StepMessage) -> None:
        for delta in message.deltas:
            outbox = self._owners.get(delta.request_id)
            if outbox is None:
                continue
            outbox.put(delta)
            if delta.finish_reason is not None:
                del self._owners[delta.request_id]

    def _fail_all(self, reason: str) -> None:
        for outbox in self._outboxes.values():
            outbox.fail(reason)
        self._owners.clear()

    async def _tell_metrics(self) -> None:
        while self._died is None:
            self._metrics.tell(self._load(), time.monotonic())
            await asyncio.sleep(METRICS_PERIOD_S)

    async def _abort_orphans(self) -> None:
        while True:
            await asyncio.sleep(1.0)
            for ingress_id, outbox in list(self._outboxes.items()):
                if outbox.unread_s > ORPHANED_AFTER_S:
                    await self._forget(list(outbox.live))
                    del self._outboxes[ingress_id]
