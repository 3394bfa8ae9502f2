"""How many rows a job has in a fleet at once: fewer where it refuses some, more while it takes all; it sends none."""

from __future__ import annotations

import asyncio
import time

SHRINKS = 0.75
"""Times what was in flight, once in so many seconds whatever the number of refusals (AIMD; Chiu & Jain 1989)."""
SHRINKS_EVERY_S = 1.0


class FleetWindow:
    def __init__(self, most: int) -> None:
        self.limit = float(most)
        self._most = most
        self._in_flight = 0
        self._shrank_s = 0.0
        self._room = asyncio.Condition()

    async def enter(self) -> None:
        async with self._room:
            await self._room.wait_for(lambda: self._in_flight < self.limit)
            self._in_flight += 1

    async def leave(self, *, refused: bool) -> None:
        now_s = time.monotonic()
        if not refused:
            self.limit = min(self._most, self.limit + 1 / self.limit)
        elif now_s - self._shrank_s > SHRINKS_EVERY_S:
            self.limit, self._shrank_s = max(1.0, SHRINKS * self._in_flight), now_s
        async with self._room:
            self._in_flight -= 1
            self._room.notify_all()
