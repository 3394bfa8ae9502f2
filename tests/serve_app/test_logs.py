"""JSON logs as Serve writes them: a line for each request, its id the client's, and no prompt unless asked for."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from ray.serve._private.http_util import RequestIdMiddleware
from ray.serve._private.logging_utils import configure_component_logger

from cluster.config import FleetConfig, LoggingSection
from cluster.errors import UserError
from serve_app.logs import LOGGER, request_log, serve_logging

SECRET = "the launch code is 0000"
CHAT: dict[str, Any] = {"model": "small", "messages": [{"role": "user", "content": SECRET}]}


@pytest.fixture
def section(tmp_path: Path) -> LoggingSection:
    return LoggingSection(format="json", folder=str(tmp_path / "logs"))


@pytest.fixture
def log_file(section: LoggingSection) -> Iterator[Path]:
    """Serve's own handlers, on a file of the test's."""
    logger = logging.getLogger(LOGGER)
    before = logger.handlers[:], logger.propagate, logger.level
    configure_component_logger(
        component_name="ingress",
        component_id="1",
        logging_config=serve_logging(section),
        max_bytes=2**20,
        backup_count=1,
    )
    assert section.folder is not None
    (file,) = Path(section.folder).iterdir()
    yield file
    for handler in logger.handlers:
        handler.close()
    logger.handlers[:], logger.propagate, logger.level = before


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


async def test_a_line_for_each_request(running: Any, section: LoggingSection, log_file: Path) -> None:
    api = RequestIdMiddleware(running.surface.api())
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=api), base_url="http://fleet") as http:
        answers = [
            await http.post("/v1/chat/completions", json=CHAT),
            await http.post("/v1/chat/completions", json=CHAT | {"stream": True}, headers={"X-Request-Id": "mine"}),
            await http.post("/v1/chat/completions", json=CHAT | {"n": 0}),
        ]
    (observer,) = request_log(section)
    for record in running.records:
        observer(record)
    written = lines(log_file)
    assert [line["message"] for line in written] == ["request ended"] * 3
    ids = [line["request_id"] for line in written]
    assert ids == [answer.headers["x-request-id"] for answer in answers]
    assert ids[1] == "mine"
    assert [line["status"] for line in written] == [200, 200, 400]
    assert {"slo_class", "variant", "prompt_tokens", "output_tokens", "ttft_ms", "tpot_ms"} <= written[0].keys()
    assert written[0]["output_tokens"] == 5
    assert written[0]["levelname"] == "INFO"
    assert "launch" not in log_file.read_text()


class TestPrompts:
    @pytest.fixture
    def config(self, config: FleetConfig) -> FleetConfig:
        data = config.model_dump(by_alias=True, exclude_unset=True)
        return FleetConfig.of(data | {"logging": {"format": "json", "prompts": True}})

    async def test_prompts_where_they_are_asked_for(
        self, running: Any, section: LoggingSection, log_file: Path
    ) -> None:
        await running.http.post("/v1/chat/completions", json=CHAT)
        await running.http.post("/v1/completions", json={"model": "small", "prompt": SECRET})
        (observer,) = request_log(section)
        for record in running.records:
            observer(record)
        chat, completion = lines(log_file)
        assert chat["prompt"]["messages"][0]["content"] == SECRET
        assert SECRET in str(completion["prompt"])


def test_text_has_no_lines_for_requests() -> None:
    assert request_log(LoggingSection()) == []
    assert serve_logging(LoggingSection()).encoding == "TEXT"


def test_prompts_without_json_would_be_without_effect() -> None:
    with pytest.raises(UserError, match=r"logging: prompts: true.*format: json"):
        FleetConfig.of({"model": {"source": "embedded:smollm2-135m"}, "logging": {"prompts": True}})
