"""Structured logs: Serve's settings for them, and a line for each request at its end; it knows no file and no route."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from cluster.config import LoggingSection
from serve_app.request_record import RequestRecord

if TYPE_CHECKING:
    from ray.serve.schema import LoggingConfig

LOGGER = "ray.serve"
"""Serve writes it to its component's file, in JSON with a record's extra attributes as keys, and as text to stderr."""
NOT_TO_STDERR = {"log_to_stderr": False}
"""As Serve's own access log has it: text would leave the fields out."""


def serve_logging(section: LoggingSection) -> LoggingConfig:
    """Of a deployment. Serve's own access log stays off: it knows neither class nor variant."""
    from ray.serve.schema import LoggingConfig

    encoding = {"text": "TEXT", "json": "JSON"}[section.format]
    return LoggingConfig(encoding=encoding, logs_dir=section.folder, enable_access_log=False)


class RequestLog:
    """Observer that writes `request ended` with the record's fields beside it."""

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger

    def __call__(self, record: RequestRecord) -> None:
        fields = record.fields()
        if record.prompt is not None:
            fields["prompt"] = record.prompt
        self._logger.info("request ended", extra=fields | NOT_TO_STDERR)


def request_log(section: LoggingSection) -> list[RequestLog]:
    """None where logs are text: a line for each request is for machines to read."""
    return [RequestLog(logging.getLogger(LOGGER))] if section.format == "json" else []
