"""A process that works on a batch, as its parent sees it; it knows no batch's state."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field

import msgspec

from cluster.config import FleetConfig
from serve_app.batches.batch_folder import BatchFolder
from serve_app.batches.order import Order
from serve_app.batches.steps import Step

STOP_GRACE_S = 20.0
"""For the rows in flight; what is not done by then is run again, or told of as not run."""
MAX_LOG_BYTES = 2**20
TAIL_BYTES = 4096


@dataclass(slots=True, kw_only=True)
class Child:
    batch: BatchFolder
    step: Step
    process: subprocess.Popen[bytes]
    _asked_at_s: float | None = field(default=None, init=False)

    @classmethod
    def start(cls, batch: BatchFolder, step: Step, config: FleetConfig, environment: Mapping[str, str]) -> Child:
        """It ends when this process does: then its stdin closes."""
        plain = config.model_dump(mode="json", by_alias=True, exclude_unset=True)
        order = Order(batch=str(batch.path), step=step, config=plain)
        is_long = batch.log.exists() and batch.log.stat().st_size > MAX_LOG_BYTES
        with batch.log.open("wb" if is_long else "ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "serve_app.batches.process"],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=dict(environment),
                start_new_session=True,
            )
        assert process.stdin is not None
        with suppress(BrokenPipeError):  # it has ended already, which its exit code tells
            process.stdin.write(msgspec.json.encode(order) + b"\n")
            process.stdin.flush()
        return cls(batch=batch, step=step, process=process)

    @property
    def exit_code(self) -> int | None:
        """None while it runs."""
        code = self.process.poll()
        if code is not None:
            self._close()
        return code

    @property
    def was_asked_to_end(self) -> bool:
        return self._asked_at_s is not None

    def end(self, now_s: float) -> None:
        """Asked at first to finish the rows in flight; killed where that takes too long."""
        if self.step == "settle":
            return  # that is how a batch ends
        if self._asked_at_s is None:
            self._asked_at_s = now_s
            self.process.terminate()
        elif now_s - self._asked_at_s > STOP_GRACE_S:
            self.process.kill()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self._close()

    def last_words(self) -> str:
        """The last line of its log."""
        lines = self.batch.log.read_bytes()[-TAIL_BYTES:].decode("utf-8", "replace").strip().splitlines()
        return lines[-1] if lines else f"{self.batch.log} is empty"

    def _close(self) -> None:
        if self.process.stdin is not None:
            with suppress(BrokenPipeError):
                self.process.stdin.close()
