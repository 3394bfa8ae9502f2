"""A replica's unsent deltas for one ingress, as frames of the channel that takes them; it knows no engine, no Ray."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable

from cluster.load import Load
from cluster.request import TokenDelta
from engine.wire import DeltaBuffer
from serve_app.wire import Frame, encode

LINGER_S = 0.25
"""How long a channel stays open without work: a chat's next request finds it open, and a drain waits no longer."""


class Outbox:
    """Gathers what an ingress has to be told until its channel, the newest one it opened, takes it.

    A slow reader finds several steps in one frame: nothing is lost and nothing is queued frame by frame.
    """

    def __init__(self, load: Callable[[], Load]) -> None:
        self._load = load
        self._deltas = DeltaBuffer()
        self._live: set[str] = set()
        self._news = asyncio.Event()
        self._lost: str | None = None
        self._reader: object | None = None
        self._unread_since_s = time.monotonic()

    @property
    def live(self) -> frozenset[str]:
        """The requests that have not ended."""
        return frozenset(self._live)

    @property
    def unread_s(self) -> float:
        """How long there has been no channel; since the first request, where it was closed for want of work."""
        return 0.0 if self._reader is not None else time.monotonic() - self._unread_since_s

    def add(self, request_ids: Iterable[str]) -> None:
        if not self._live:
            self._unread_since_s = time.monotonic()
        self._live.update(request_ids)

    def drop(self, request_id: str) -> None:
        """Nobody wants to hear of it any more; of what waits already, the ingress throws its part away."""
        self._live.discard(request_id)

    def put(self, delta: TokenDelta) -> None:
        if delta.request_id not in self._live:
            return
        self._deltas.add([delta])
        if delta.finish_reason is not None:
            self._live.discard(delta.request_id)
        self._news.set()

    def fail(self, reason: str) -> None:
        """The engine is gone: every request that has not ended ends now."""
        self._lost = reason
        for request_id in self.live:
            self.put(TokenDelta(request_id=request_id, token_ids=[], finish_reason="error", error=reason))

    async def frames(self) -> AsyncIterator[bytes]:
        """Until there has been no work for LINGER_S, or a newer channel takes over."""
        reader = self._reader = object()
        try:
            while await self._has_news() and self._reader is reader:
                self._news.clear()
                yield encode(Frame(deltas=self._deltas.take(), load=self._load(), lost=self._lost))
        finally:
            if self._reader is reader:
                self._reader = None
                self._unread_since_s = time.monotonic()

    async def _has_news(self) -> bool:
        while not self._deltas:
            self._news.clear()
            try:
                await asyncio.wait_for(self._news.wait(), LINGER_S)
            except TimeoutError:
                # The last delta may have come between the time-out and this line.
                if not self._live and not self._deltas:
                    return False
        return True
