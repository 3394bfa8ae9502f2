"""Which step of a batch's life comes next; it does none of them."""

from __future__ import annotations

from typing import Literal

from serve_app.batches.batch_folder import BatchFolder
from serve_app.batches.record import BatchState

Step = Literal["check", "run", "settle"]


def next_step(batch: BatchFolder, state: BatchState, now_s: float) -> Step | None:
    """None of a batch that is over."""
    if state.is_over:
        return None
    if state.status == "finalizing" or batch.is_due(now_s):
        return "settle"
    return "check" if state.status == "validating" else "run"
