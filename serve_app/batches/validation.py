"""The lines of a batch's input file, checked before any of them runs; it knows no model's tokens and generates nothing.

What is wrong with a line as such (its JSON, custom_id, method, url, model) fails the batch, with the line named, as
OpenAI does it; what is wrong with a request's own parameters is an error of that request when it runs.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from batch_jobs.input_files import InputFile
from batch_jobs.openai_lines import BatchLine, BatchUrl, custom_id_of
from batch_jobs.records import BadRecord, jsonl_records
from serve_app.batches.record import LineError

MAX_ERRORS = 100
"""Told of one file."""
SHOWN_LETTERS = 60
"""Of what a client sent."""


@dataclass(slots=True, kw_only=True)
class LineCheck:
    """What has been seen of a file so far."""

    endpoint: BatchUrl
    models: list[str]
    """That a line may name."""
    max_requests: int
    num_requests: int = field(default=0, init=False)
    model: str | None = field(default=None, init=False)
    """Of the first line that names one; all others must name the same."""
    errors: list[LineError] = field(default_factory=list, init=False)
    _ids: set[str] = field(default_factory=set, init=False)

    def read(self, file: InputFile) -> None:
        for found in jsonl_records(file):
            self.num_requests += 1
            if self.num_requests > self.max_requests:
                message = f"The file has more than {self.max_requests} requests (batches.max_requests)"
                self._add(found.number, "too_many_requests", message)
            else:
                self._check(found.number, found.record)
            if self.num_requests > self.max_requests or len(self.errors) >= MAX_ERRORS:
                return
        if not self.num_requests:
            self.errors.append(LineError(code="empty_file", message="The file has no requests"))

    def _check(self, number: int, record: dict[str, Any] | BadRecord) -> None:
        if isinstance(record, BadRecord):
            self._add(number, "invalid_json_line", f"This line is no JSON object: {record.error}")
            return
        self._check_id(number, record)
        try:
            line = BatchLine.of(record)
        except ValueError as error:
            param = str(error).partition(" ")[0]
            self._add(number, f"invalid_{param}", str(error), param)
            return
        if line.url != self.endpoint:
            self._add(number, "invalid_url", f"url is {line.url}, but the batch's endpoint {self.endpoint}", "url")
        self._check_model(number, record["body"].get("model"))

    def _check_id(self, number: int, record: dict[str, Any]) -> None:
        try:
            custom_id = custom_id_of(record)
            custom_id.encode()
        except UnicodeEncodeError:
            self._add(number, "invalid_custom_id", "custom_id holds what is not valid UTF-8", "custom_id")
            return
        except ValueError as error:
            self._add(number, "invalid_custom_id", str(error), "custom_id")
            return
        if custom_id in self._ids:
            message = f"custom_id {custom_id[:SHOWN_LETTERS]!r} is of an earlier line too"
            self._add(number, "duplicate_custom_id", message, "custom_id")
        self._ids.add(custom_id)

    def _check_model(self, number: int, model: object) -> None:
        if model not in self.models:
            known = ", ".join(self.models)
            message = f"The model {ascii(model)[:SHOWN_LETTERS]} does not exist; known: {known}"
            self._add(number, "model_not_found", message, "body.model")
        elif self.model is None:
            self.model = str(model)
        elif model != self.model:
            message = f"The model is {model}, but {self.model} in an earlier line; a batch has one"
            self._add(number, "mismatched_model", message, "body.model")

    def _add(self, number: int, code: str, message: str, param: str | None = None) -> None:
        self.errors.append(LineError(code=code, message=message, line=number, param=param))
