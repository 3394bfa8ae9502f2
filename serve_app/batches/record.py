"""A batch as it is kept and as OpenAI shows it; it knows no disk, no HTTP and no job.

What was asked for never changes; each thing that changes has one writer: cancelling and a failure to run are marks of
their own, the state is written by the process that works on the batch.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from batch_jobs.openai_lines import BatchUrl

WINDOW = "24h"
WINDOW_S = 24 * 3600

Status = Literal["validating", "failed", "in_progress", "finalizing", "completed", "expired", "cancelled"]
END_STATUSES = ("failed", "completed", "expired", "cancelled")


class LineError(msgspec.Struct, frozen=True, kw_only=True):
    """Why a batch failed; OpenAI's BatchError."""

    code: str
    message: str
    line: int | None = None
    param: str | None = None


class BatchRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What a client asked for."""

    id: str
    endpoint: BatchUrl
    input_file_id: str
    output_file_id: str
    """Given out once there is one, as the next; chosen here so that a result is written under one id, once."""
    error_file_id: str
    created_at: int
    """Seconds since 1970."""
    expires_at: int
    metadata: dict[str, str] | None = None
    output_expires_after_s: int | None = None


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """Rows that are done, and their tokens."""

    completed: int = 0
    failed: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0


class BatchState(msgspec.Struct, frozen=True, kw_only=True):
    """How far it is."""

    status: Status = "validating"
    at: dict[Status, int] = {}
    """Seconds since 1970 when it became so."""
    model: str | None = None
    """As all lines name it."""
    num_requests: int = 0
    errors: list[LineError] = []
    progress: Progress = Progress()
    """At the end; until then it is kept apart."""
    has_output: bool = False
    has_errors: bool = False

    @property
    def is_over(self) -> bool:
        return self.status in END_STATUSES

    def becoming(self, status: Status, now_s: float, **changes: Any) -> BatchState:
        return msgspec.structs.replace(self, status=status, at={**self.at, status: int(now_s)}, **changes)


def batch_object(
    request: BatchRequest, state: BatchState, progress: Progress, cancelled_at: int | None
) -> dict[str, Any]:
    """OpenAI's Batch. `cancelled_at`: when a client asked for it."""
    times: dict[str, Any] = {f"{status}_at": at for status, at in state.at.items()}
    done = state.progress if state.is_over else progress
    errors = {"object": "list", "data": [msgspec.structs.asdict(error) for error in state.errors]}
    return {
        "id": request.id,
        "object": "batch",
        "endpoint": request.endpoint,
        "model": state.model,
        "errors": errors if state.errors else None,
        "input_file_id": request.input_file_id,
        "completion_window": WINDOW,
        "status": "cancelling" if cancelled_at is not None and not state.is_over else state.status,
        "output_file_id": request.output_file_id if state.has_output else None,
        "error_file_id": request.error_file_id if state.has_errors else None,
        "created_at": request.created_at,
        "in_progress_at": None,
        "expires_at": request.expires_at,
        "finalizing_at": None,
        "completed_at": None,
        "failed_at": None,
        "expired_at": None,
        "cancelling_at": cancelled_at,
        "cancelled_at": None,
        **times,
        "request_counts": {"total": state.num_requests, "completed": done.completed, "failed": done.failed},
        "usage": _usage(done),
        "metadata": request.metadata,
    }


def _usage(done: Progress) -> dict[str, Any]:
    return {
        "input_tokens": done.prompt_tokens,
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens": done.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": done.prompt_tokens + done.completion_tokens,
    }
