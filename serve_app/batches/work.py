"""A batch's file checked before its rows run, and their results kept behind them; it runs none.

Each may be killed at any moment and done again: it begins at what is on disk.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from itertools import chain
from typing import Literal

from batch_jobs.input_files import InputFile
from cluster.config import FleetConfig
from cluster.errors import UserError
from serve_app.batches.batch_folder import BatchFolder
from serve_app.batches.record import BatchState, LineError, Status
from serve_app.batches.results import (
    JobResults,
    NotRun,
    contents,
    input_of,
    keep_lines,
    lines_not_run,
)
from serve_app.batches.shelf import Shelf
from serve_app.batches.validation import LineCheck

DAY_S = 24 * 3600

NOT_RUN: dict[Status, NotRun] = {
    "cancelled": NotRun(code="batch_cancelled", message="The batch was cancelled before this request was run."),
    "expired": NotRun(code="batch_expired", message="The completion window ended before this request was run."),
    "failed": NotRun(code="batch_failed", message="The batch failed before this request was run."),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchWork:
    batch: BatchFolder
    config: FleetConfig

    def check(self) -> None:
        """The batch is then in progress or has failed."""
        name, request = self.config.model.name, self.batch.request
        check = LineCheck(
            endpoint=request.endpoint,
            models=[name, *(f"{name}:{variant}" for variant in self.config.variants)],
            max_requests=self.config.batches.max_requests,
        )
        try:
            check.read(self._input())
        except UserError as error:
            reason = str(error).removeprefix(f"{self.batch.input}: ")
            check.errors.append(LineError(code="invalid_file", message=f"The file {reason}"))
        status: Status = "failed" if check.errors else "in_progress"
        facts = {"num_requests": check.num_requests, "model": check.model, "errors": check.errors}
        self.batch.set_state(self.batch.state.becoming(status, time.time(), **facts))
        if check.errors:
            self.batch.clear()

    def settle(self) -> None:
        """The results are files of the caller, and the batch is over."""
        state = self.batch.state
        if state.status != "finalizing" and not self.batch.is_due(time.time()):
            state = state.becoming("finalizing", time.time())
            self.batch.set_state(state)
        results = JobResults.of(self.batch.jobs)
        end = self._end(state)
        output = self._kept(results, "output")
        # A file that was not checked yet is told of in no lines: they may not even have ids.
        errors = self._kept(results, "error", NOT_RUN.get(end) if state.num_requests else None)
        failure = self.batch.failure
        self.batch.set_state(
            state.becoming(
                end,
                time.time(),
                errors=[LineError(code="server_error", message=failure)] if end == "failed" and failure else [],
                progress=results.progress,
                has_output=output,
                has_errors=errors,
            )
        )
        self.batch.clear()

    def _end(self, state: BatchState) -> Status:
        if state.status == "finalizing":
            return "completed"
        if self.batch.cancelled_at is not None:
            return "cancelled"
        return "failed" if self.batch.failure is not None else "expired"

    def _kept(self, results: JobResults, kind: Literal["output", "error"], not_run: NotRun | None = None) -> bool:
        """Whether the file holds a line, and so is there."""
        request = self.batch.request
        pieces = contents(results.output if kind == "output" else results.errors)
        if not_run is not None:
            pieces = chain(pieces, lines_not_run(self._input(), results.done_ids(), not_run, request.id))
        kept = keep_lines(
            Shelf.around(self.batch).files,
            request.output_file_id if kind == "output" else request.error_file_id,
            f"{request.id}_{kind}.jsonl",
            pieces,
            request.output_expires_after_s or self.config.batches.keep_days * DAY_S,
        )
        return kept is not None

    def _input(self) -> InputFile:
        """UserError where it is no text of lines."""
        return input_of(self.batch.input)
