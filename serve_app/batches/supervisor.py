"""Starts and ends the processes that work on batches, the next step of each as it comes; it reads no lines itself.

One supervisor works on a folder at a time: the one that holds the kernel's lock on it, which goes to another ingress,
or to the next server, when its process ends, however it ends. Its children end with it. Each batch has a lock besides,
so that a child that is slow to end and its successor never work on one batch at once.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import shutil
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import msgspec

from cluster.config import FleetConfig
from serve_app.batches.batch_folder import BatchBusyError, BatchFolder
from serve_app.batches.child import Child
from serve_app.batches.exit_codes import BUSY, USER_ERROR
from serve_app.batches.shelf import Shelves
from serve_app.batches.steps import Step, next_step

log = logging.getLogger("ray.serve")

PERIOD_S = 1.0
SWEEP_PERIOD_S = 3600.0
DAY_S = 24 * 3600.0
MAX_FAILURES = 5
"""One after another without a row between them; then the batch fails. With the pauses between them, 75 s.
What the server's owner can mend (no replica, a full disk) is waited for, until the completion window ends."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 5.0, 300.0
SLOTS: dict[Step, int] = {"check": 1, "settle": 2}
"""Processes at once, beside batches.max_running of `run`; they need no engine."""


@dataclass(slots=True, kw_only=True)
class Failures:
    """Of one batch, since its last row."""

    count: int = 0
    rows: int = 0
    step: Step | None = None
    not_before_s: float = 0.0

    def pause(self, step: Step | None, pause_s: float, now_s: float) -> None:
        """Of that step, so that a batch that is cancelled meanwhile is settled at once."""
        self.step, self.not_before_s = step, now_s + pause_s

    def holds_up(self, step: Step | None, now_s: float) -> bool:
        return self.step == step and now_s < self.not_before_s


@dataclass(slots=True, kw_only=True)
class Supervisor:
    shelves: Shelves
    config: FleetConfig
    environment: Mapping[str, str]
    """Of the processes."""
    _lock: BinaryIO | None = field(default=None, init=False)
    _children: dict[Path, Child] = field(default_factory=dict, init=False)
    _failures: dict[Path, Failures] = field(default_factory=dict, init=False)
    _over: set[Path] = field(default_factory=set, init=False)
    """Batches that need not be looked at again."""
    _swept_at_s: float = field(default=0.0, init=False)
    _stopping: bool = field(default=False, init=False)
    _woken: asyncio.Event = field(default_factory=asyncio.Event, init=False)
    _task: asyncio.Task[None] | None = field(default=None, init=False)

    def start(self) -> None:
        """In the running event loop."""
        self._task = asyncio.create_task(self._run())

    def wake(self) -> None:
        """Something is to be done now rather than in PERIOD_S."""
        self._woken.set()

    def stop(self) -> None:
        """Starts nothing more; what runs is asked to end, and goes on with the next server."""
        self._stopping = True
        self.wake()

    async def close(self) -> None:
        """Ends all at once, as the end of this process would."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        for child in self._children.values():
            await asyncio.to_thread(child.kill)
        if self._lock is not None:
            self._lock.close()

    async def _run(self) -> None:
        while True:
            try:
                await asyncio.to_thread(self._turn, time.time())
            except Exception:
                log.exception("batches in %s", self.shelves.folder)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._woken.wait(), PERIOD_S)
            self._woken.clear()

    def _turn(self, now_s: float) -> None:
        if not self._leads():
            return
        for path, child in list(self._children.items()):
            if (code := child.exit_code) is not None:
                del self._children[path]
                self._ended(BatchFolder(path=path), child, code, now_s)
            elif self._stopping or BatchFolder(path=path).is_due(now_s):
                child.end(now_s)
        if self._stopping:
            return
        if now_s - self._swept_at_s > SWEEP_PERIOD_S:
            self._swept_at_s = now_s
            self._sweep(now_s)
        for batch in sorted(self.shelves.batches(), key=lambda batch: batch.path.name):
            if batch.path not in self._over and batch.path not in self._children:
                self._look_at(batch, now_s)

    def _leads(self) -> bool:
        if self._lock is not None:
            return True
        stream = (self.shelves.folder / "lock").open("a+b")
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            stream.close()
            return False
        self._lock = stream
        return True

    def _look_at(self, batch: BatchFolder, now_s: float) -> None:
        """One that cannot be read, or not be begun, holds up no other."""
        failures = self._failures.setdefault(batch.path, Failures())
        try:
            step = next_step(batch, batch.state, now_s)
            if step is None:
                self._over.add(batch.path)
                del self._failures[batch.path]
            elif self._has_slot(step) and not failures.holds_up(step, now_s):
                self._children[batch.path] = Child.start(batch, step, self.config, self.environment)
        except (OSError, msgspec.MsgspecError):
            if not failures.holds_up(None, now_s):
                log.exception("%s: cannot be worked on", batch.path.name)
                failures.pause(None, LONGEST_PAUSE_S, now_s)

    def _has_slot(self, step: Step) -> bool:
        slots = self.config.batches.max_running if step == "run" else SLOTS[step]
        return sum(child.step == step for child in self._children.values()) < slots

    def _ended(self, batch: BatchFolder, child: Child, code: int, now_s: float) -> None:
        if code == 0 or child.was_asked_to_end:
            self._failures.pop(batch.path, None)
            return
        failures = self._failures.setdefault(batch.path, Failures())
        if code == BUSY:
            failures.pause(child.step, PERIOD_S, now_s)
            return
        rows = batch.progress.completed + batch.progress.failed
        failures.count = failures.count + 1 if rows <= failures.rows else 1
        failures.rows = rows
        failures.pause(child.step, min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2 ** (failures.count - 1)), now_s)
        log.warning("%s: step %s ended with exit code %d: %s", batch.path.name, child.step, code, child.last_words())
        if failures.count >= MAX_FAILURES and child.step != "settle" and code != USER_ERROR:
            batch.fail(f"The batch's process ended {failures.count} times (exit code {code})")

    def _sweep(self, now_s: float) -> None:
        """Removes what is past its days, and what kills left."""
        for shelf in self.shelves.all():
            shelf.files.sweep()
            shelf.batches.sweep()
        for batch in self.shelves.batches():
            state = batch.state
            if not state.is_over:
                continue
            if now_s - max(state.at.values()) > self.config.batches.keep_days * DAY_S:
                self._over.discard(batch.path)
                shutil.rmtree(batch.path, ignore_errors=True)
            elif batch.input.exists():
                with suppress(BatchBusyError), batch.held():
                    batch.clear()
