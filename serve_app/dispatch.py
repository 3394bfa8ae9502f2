"""Gets a request admitted: asks the router, submits, tries once more elsewhere, waits; it knows no HTTP and no text."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from cluster.rank import deadline_s
from cluster.request import GenerationRequest, TokenDelta
from cluster.routing import Choice, RouteQuery
from cluster.slo import Fallback, SloLimits
from engine.wire import DeltaBuffer
from serve_app.errors import bad_parameter, fleet_full, replica_lost, shutting_down
from serve_app.fleet_view import FleetView
from serve_app.replica_link import Inbox, ReplicaLost, ReplicaStops

RETRY_S = 1.0
"""A queued request asks again at least so often: a replica may have come in the meantime."""
BROKEN = ("error", "abort")
MAX_LOSSES = 2
"""A request is tried once more after its replica was lost, not for ever: it may be what kills them. A background one is
not: who sends it tries again, and in smaller company."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """The sequences of one HTTP request; they go to one replica, which computes a common prompt once."""

    requests: list[GenerationRequest]
    variant: str | None
    """Where the client named one."""
    slo: SloLimits
    prompt_tokens: int
    expected_output_tokens: int
    """Of one sequence."""
    arrived_s: float
    """By time.monotonic."""
    prefix: tuple[int, ...] = ()
    """Of the first prompt, as cluster.prefix_hash names it."""

    @property
    def ids(self) -> list[str]:
        return [request.request_id for request in self.requests]

    def query(self, exclude: frozenset[str]) -> RouteQuery:
        return RouteQuery(
            slo=self.slo,
            prompt_tokens=self.prompt_tokens,
            expected_output_tokens=self.expected_output_tokens,
            model_variant=self.variant,
            exclude=exclude,
            prefix=self.prefix,
        )

    def submission(self, now_s: float) -> list[GenerationRequest]:
        """As a replica takes them now: of the time to the first token, what has passed here is gone."""
        left_s = deadline_s(self.slo, now_s - self.arrived_s)
        slo = self.slo
        return [
            replace(request, objective=slo.objective, tpot_ms=slo.tpot_ms, deadline_s=left_s)
            for request in self.requests
        ]


class Refused(Exception):  # noqa: N818  (an answer, not an error)
    """The replica said no, with its reason and when to come again."""

    def __init__(self, reason: str, retry_after_s: float | None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.retry_after_s = retry_after_s or RETRY_S


@dataclass(frozen=True, slots=True, kw_only=True)
class FirstToken:
    """Where the time to a request's first token went, as far as it is known; the rest went to the ways between."""

    routed_s: float
    """From its arrival until it was sent to the replica that answers."""
    queued_s: float
    """In the engine, until the step that began its prompt."""
    prefill_s: float

    @property
    def waited_s(self) -> float:
        return self.routed_s + self.queued_s


class Reply:
    """An admitted request whose first token has come; `close` it when the client has everything, or has gone."""

    def __init__(self, view: FleetView, choice: Choice, work: Work, inbox: Inbox) -> None:
        self.choice = choice
        self._sent_s = time.monotonic()
        self._view = view
        self._link = view.link(choice.replica_id)
        self._work = work
        self._inbox = inbox
        self._first: list[TokenDelta] = []

    async def wait_for_first(self) -> None:
        """Raises ReplicaLost."""
        self._first = await self._next()

    @property
    def first_token(self) -> FirstToken:
        """Of the sequence that came first; before `deltas` is read."""
        first = self._first[0]
        return FirstToken(
            routed_s=self._sent_s - self._work.arrived_s,
            queued_s=first.queued_s or 0.0,
            prefill_s=first.prefill_s or 0.0,
        )

    async def deltas(self) -> AsyncIterator[tuple[int, TokenDelta]]:
        """With the index of their sequence, until every sequence has ended; ApiError if the replica is lost."""
        index_of = {request_id: index for index, request_id in enumerate(self._work.ids)}
        running = set(index_of)
        try:
            while running:
                deltas, self._first = self._first or await self._next(), []
                for delta in deltas:
                    if delta.finish_reason is not None:
                        running.discard(delta.request_id)
                    yield index_of[delta.request_id], delta
        except ReplicaLost as lost:
            raise replica_lost(str(lost)) from None

    def close(self) -> None:
        self._link.abort(self._work.ids)
        for request_id in self._work.ids:
            self._view.router.finished(request_id)

    async def _next(self) -> list[TokenDelta]:
        """All that has come, joined by sequence: whoever is slower than the engine sends several tokens at a time."""
        joined = DeltaBuffer()
        joined.add([_sound(await self._inbox.get())])
        while not self._inbox.empty():
            item = self._inbox.get_nowait()
            if isinstance(item, ReplicaLost) or item.finish_reason in BROKEN:
                self._inbox.put_nowait(item)  # nothing comes after it; what came before is sent first
                break
            joined.add([item])
        return joined.take()


class Dispatcher:
    """Every way of a request until its first token."""

    def __init__(self, view: FleetView) -> None:
        self.waiting = 0
        """Requests whose first token has not come."""
        self.queued: Counter[tuple[str, str | None]] = Counter()
        """Of those, the ones that no replica has, by SLO class and the variant that they name."""
        self._view = view
        self._draining = False

    def drain(self) -> None:
        """From now on nothing new begins."""
        self._draining = True

    async def start(self, work: Work) -> Reply:
        """Returns with the first token, so that whatever fails before it can be tried again; ApiError otherwise."""
        if work.slo.is_background:  # which waits for what is idle, not for more replicas
            return await self._start(work)
        self.waiting += 1
        self.queued[work.slo.name, work.variant] += 1
        try:
            return await self._start(work)
        finally:
            self.waiting -= 1
            self.queued[work.slo.name, work.variant] -= 1

    async def _start(self, work: Work) -> Reply:
        until_s = time.monotonic() + (work.slo.deadline_s or 0.0)
        tried: set[str] = set()
        losses = 0
        while True:
            choice = await self._choose(work, frozenset(tried), until_s)
            try:
                return await self._begin(work, choice)
            except Refused as refused:
                if tried:
                    await _wait(work.slo.fallback, refused.reason, refused.retry_after_s, until_s)
                    tried.clear()
                    continue
            except ReplicaStops:
                pass  # it never got the request, so that counts for nothing
            except ReplicaLost as lost:
                losses += 1
                if losses == MAX_LOSSES or work.slo.is_background:
                    raise replica_lost(str(lost)) from None
            tried.add(choice.replica_id)

    async def _choose(self, work: Work, tried: frozenset[str], until_s: float) -> Choice:
        """A replica not tried yet; where there is none, any, after a wait that the class allows."""
        while not self._draining:
            chosen = self._view.router.choose(work.query(tried), time.monotonic())
            if isinstance(chosen, Choice):
                return chosen
            await _wait(chosen.fallback, chosen.reason, chosen.retry_after_s, until_s)
            tried = frozenset()
        raise shutting_down()

    async def _begin(self, work: Work, choice: Choice) -> Reply:
        inbox: Inbox = asyncio.Queue()
        reply = Reply(self._view, choice, work, inbox)
        self._count(work, choice)
        with self._out_of_queue(work):
            try:
                await self._submit(work, choice, inbox)
                await reply.wait_for_first()
            except BaseException:
                reply.close()
                raise
        return reply

    @contextmanager
    def _out_of_queue(self, work: Work) -> Iterator[None]:
        """While a replica has it; background work is in no queue."""
        counts = 0 if work.slo.is_background else 1
        self.queued[work.slo.name, work.variant] -= counts
        try:
            yield
        finally:
            self.queued[work.slo.name, work.variant] += counts

    def _count(self, work: Work, choice: Choice) -> None:
        now_s = time.monotonic()
        for number, request in enumerate(work.requests):
            self._view.router.dispatched(
                choice.replica_id,
                request.request_id,
                len(request.prompt_token_ids),
                request.sampling.max_tokens,
                now_s,
                work.slo.tpot_ms,
                prefix=() if number else work.prefix,
                objective=work.slo.objective,
            )

    async def _submit(self, work: Work, choice: Choice, inbox: Inbox) -> None:
        try:
            answer = await self._view.link(choice.replica_id).submit(work.submission(time.monotonic()), inbox)
        except ReplicaStops:
            self._view.stops(choice.replica_id)
            raise
        except ReplicaLost as lost:
            self._view.forget(choice.replica_id, str(lost))
            raise
        if answer.invalid is not None:
            raise bad_parameter(None, answer.invalid)
        if not answer.verdict.admitted:
            raise Refused(answer.verdict.reason, answer.verdict.retry_after_s)


def _sound(item: TokenDelta | ReplicaLost) -> TokenDelta:
    if isinstance(item, ReplicaLost):
        raise item
    if item.finish_reason in BROKEN:
        raise ReplicaLost(item.error or "the sequence was aborted there")
    return item


async def _wait(fallback: Fallback, reason: str, retry_after_s: float, until_s: float) -> None:
    """Until it is worth asking again; ApiError where the class does not wait, or has waited long enough."""
    left_s = until_s - time.monotonic()
    if fallback != "queue" or left_s <= 0:
        raise fleet_full(reason, retry_after_s)
    await asyncio.sleep(min(retry_after_s, left_s, RETRY_S))
