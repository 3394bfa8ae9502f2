"""DecisionFeed: the newest scaling decision in an ingress, whose router follows its shares; it decides nothing."""

from __future__ import annotations

import asyncio
import contextvars
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import asdict
from typing import Any

from ray.actor import ActorHandle
from ray.exceptions import RayActorError

from cluster.routing import SloRouter
from serve_app.decision_board import Posted, find_board, unpacked

READ_PERIOD_S = 1.0
READ_TIMEOUT_S = 3.0
VALID_INTERVALS = 3
"""Shares that nobody has renewed for so many intervals are followed no more."""


class BoardReader:
    """The board of Serve's controller; it may come later than the ingress, and anew."""

    def __init__(self) -> None:
        self._board: ActorHandle[Any] | None = None

    async def __call__(self) -> bytes | None:
        if self._board is None:
            try:
                self._board = await asyncio.to_thread(find_board)
            except ValueError:
                return None
        try:
            return await asyncio.wait_for(self._board.read.remote(), READ_TIMEOUT_S)
        except RayActorError:
            self._board = None
            raise


class DecisionFeed:
    def __init__(self, read: Callable[[], Awaitable[bytes | None]], router: SloRouter, interval_s: float) -> None:
        """`interval_s` between decisions."""
        self._read = read
        self._router = router
        self._valid_s = VALID_INTERVALS * interval_s
        self._posted: Posted | None = None
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._follow(), context=contextvars.Context())

    def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()

    def describe(self) -> dict[str, Any] | None:
        """The last decision, for GET /v1/fleet; None before the first."""
        if self._posted is None:
            return None
        decision = self._posted.decision
        return {
            "decided_at_s": self._posted.at_s,
            "replicas": decision.replicas,
            "shares": decision.shares,
            "reason": decision.reason,
            "loads": [asdict(load) for load in decision.loads],
            "dry_run": self._posted.dry_run,
            "log": self._posted.log_path,
        }

    async def _follow(self) -> None:
        while True:
            with suppress(Exception):  # without news the shares run out
                self._take(await self._read())
            await asyncio.sleep(READ_PERIOD_S)

    def _take(self, data: bytes | None) -> None:
        posted = unpacked(data) if data is not None else None
        if posted is None or (self._posted is not None and posted.at_s == self._posted.at_s):
            return
        self._posted = posted
        if not posted.dry_run:
            # By this host's clock: it is not the controller's.
            self._router.follow(posted.decision.shares, time.monotonic() + self._valid_s)
