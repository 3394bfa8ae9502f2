"""One replica as an ingress sees it: submissions out, deltas in over one channel; it neither chooses nor retries."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from ray.serve.handle import DeploymentHandle

from cluster.load import Load
from cluster.request import GenerationRequest, TokenDelta
from serve_app.replica_gone import ReplicaGone
from serve_app.wire import Answer, Submission, decode_answer, decode_frame, encode

SUBMIT_TIMEOUT_S = 10.0
"""A replica answers between two engine steps; one that has not in so long is as good as lost."""


class ReplicaLost(Exception):  # noqa: N818  (it names what happened)
    """The replica, or the way to it, is gone."""


class ReplicaStops(ReplicaLost):
    """Serve stops the replica: it takes nothing new, and what runs there goes on."""


Inbox = asyncio.Queue[TokenDelta | ReplicaLost]


@dataclass(frozen=True, slots=True, kw_only=True)
class VariantHandles:
    """A variant's deployment, one handle a method; pickling bytes costs least (cloudpickle: 10 times it)."""

    variant: str
    submit: DeploymentHandle
    channel: DeploymentHandle
    abort: DeploymentHandle
    load: DeploymentHandle

    @classmethod
    def of(cls, variant: str, handle: DeploymentHandle) -> VariantHandles:
        def method(name: str, *, stream: bool = False) -> DeploymentHandle:
            return handle.options(
                method_name=name, stream=stream, request_serialization="pickle", response_serialization="pickle"
            )

        return cls(
            variant=variant,
            submit=method("submit"),
            channel=method("channel", stream=True),
            abort=method("abort"),
            load=method("load"),
        )


class ReplicaLink:
    """Calls run in a context of their own: Serve would else count them to the HTTP request that made them and cancel
    them with it, the channel of everybody included."""

    def __init__(
        self,
        handles: VariantHandles,
        replica_id: str,
        ingress_id: str,
        on_load: Callable[[Load], None],
        on_lost: Callable[[str, str], None],
    ) -> None:
        """`on_lost` is told the replica's id and the reason, once what it said before has been handed out."""
        self.variant = handles.variant
        self.replica_id = replica_id
        self._handles = handles
        self._ingress_id = ingress_id
        self._on_load = on_load
        self._on_lost = on_lost
        self._inboxes: dict[str, Inbox] = {}
        self._reader: asyncio.Task[None] | None = None
        self._stops = False
        self._tasks: set[asyncio.Task[Any]] = set()

    @property
    def in_flight(self) -> int:
        return len(self._inboxes)

    async def submit(self, requests: list[GenerationRequest], inbox: Inbox) -> Answer:
        """The replica's verdict; if it admits, the deltas of all requests go to `inbox`.

        Raises ReplicaLost, and of that ReplicaStops where only this submission is lost.

        A caller that is cancelled meanwhile leaves nothing running there.
        """
        ids = [request.request_id for request in requests]
        self._inboxes.update(dict.fromkeys(ids, inbox))
        self._ensure_reader()
        call = self._spawn(self._submit(requests))
        try:
            answer = await asyncio.shield(call)
        except asyncio.CancelledError:
            self._discard(ids)
            self._spawn(self._abort_after(call, ids))
            raise
        except ReplicaGone as gone:
            self._discard(ids)
            raise ReplicaStops(f"{self.variant} {self.replica_id}: {gone}") from None
        except Exception as error:
            self._discard(ids)
            raise ReplicaLost(f"{self.variant} {self.replica_id}: {error}") from None
        self._on_load(answer.verdict.load)
        if not answer.verdict.admitted:
            self._discard(ids)
        return answer

    def abort(self, request_ids: list[str]) -> None:
        """Those that have ended already are no matter."""
        running = [request_id for request_id in request_ids if request_id in self._inboxes]
        self._discard(running)
        if running and not self._stops:
            self._spawn(self._abort(running))
        self._leave_if_done()

    def stops(self) -> None:
        """From now on no call is routed there: what streams goes on, and the end of the channel is the only abort."""
        self._stops = True
        self._leave_if_done()

    def goes_on(self) -> None:
        """It does not stop after all."""
        self._stops = False

    def fail(self, reason: str) -> None:
        """Everything that runs here ends with ReplicaLost."""
        inboxes, self._inboxes = self._inboxes, {}
        for inbox in {id(inbox): inbox for inbox in inboxes.values()}.values():
            inbox.put_nowait(ReplicaLost(f"{self.variant} {self.replica_id}: {reason}"))

    def end(self, reason: str) -> None:
        """The same for a replica that is well: it is told, too."""
        running = list(self._inboxes)
        self.fail(reason)
        if running and not self._stops:
            self._spawn(self._abort(running))

    def _leave_if_done(self) -> None:
        """A replica whose channel is gone for some seconds aborts what it generates for it."""
        if self._stops and not self._inboxes and self._reader is not None:
            self._reader.cancel()

    def _discard(self, request_ids: list[str]) -> None:
        for request_id in request_ids:
            self._inboxes.pop(request_id, None)

    def _spawn(self, call: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.create_task(call, context=contextvars.Context())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _submit(self, requests: list[GenerationRequest]) -> Answer:
        submission = encode(Submission(ingress_id=self._ingress_id, requests=requests))
        response = self._handles.submit.remote(submission, replica_id=self.replica_id)
        return decode_answer(await asyncio.wait_for(response, SUBMIT_TIMEOUT_S))

    async def _abort_after(self, submission: asyncio.Task[Any], request_ids: list[str]) -> None:
        """Calls may overtake one another, so the abort waits for the submission's answer."""
        with suppress(Exception):
            await submission
        await self._abort(request_ids)

    async def _abort(self, request_ids: list[str]) -> None:
        # A replica that is gone has freed its blocks anyway.
        with suppress(Exception):
            await asyncio.wait_for(
                self._handles.abort.remote(request_ids, replica_id=self.replica_id), SUBMIT_TIMEOUT_S
            )

    def _ensure_reader(self) -> None:
        if self._reader is None or self._reader.done():
            self._reader = self._spawn(self._read())

    async def _read(self) -> None:
        """Opens the channel as long as there is something to hear; the replica closes it when it has nothing to say."""
        try:
            while self._inboxes:
                channel = self._handles.channel.remote(self._ingress_id, replica_id=self.replica_id)
                try:
                    async for frame in channel:
                        self._deliver(frame)
                except asyncio.CancelledError:
                    channel.cancel()
                    raise
        except Exception as error:
            self._on_lost(self.replica_id, str(error) or type(error).__name__)

    def _deliver(self, data: bytes) -> None:
        frame = decode_frame(data)
        if frame.lost is None:
            self._on_load(frame.load)
        for delta in frame.deltas:
            inbox = self._inboxes.get(delta.request_id)
            if inbox is None:
                continue
            if delta.finish_reason is not None:
                del self._inboxes[delta.request_id]
            inbox.put_nowait(delta)
        if frame.lost is not None:
            self._on_lost(self.replica_id, frame.lost)
