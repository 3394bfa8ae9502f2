"""A batch's file is checked line by line, and what is wrong names its line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from batch_jobs.input_files import find_input_files
from serve_app.batches.validation import MAX_ERRORS, LineCheck

GOOD: dict[str, Any] = {
    "custom_id": "a",
    "method": "POST",
    "url": "/v1/chat/completions",
    "body": {"model": "m", "messages": [{"role": "user", "content": "Hello"}]},
}


def checked(path: Path, lines: list[Any], max_requests: int = 100) -> LineCheck:
    file = path / "input.jsonl"
    file.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    check = LineCheck(endpoint="/v1/chat/completions", models=["m", "m:nf4"], max_requests=max_requests)
    check.read(find_input_files((str(file),), input_format="openai-batch")[0])
    return check


def test_a_good_file_has_no_errors(tmp_path: Path) -> None:
    check = checked(tmp_path, [GOOD, "", GOOD | {"custom_id": "b"}])
    assert (check.errors, check.num_requests, check.model) == ([], 2, "m")


@pytest.mark.parametrize(
    ("line", "code", "param"),
    [
        ("{", "invalid_json_line", None),
        ("[]", "invalid_json_line", None),
        (GOOD | {"custom_id": "a"}, "duplicate_custom_id", "custom_id"),
        (GOOD | {"custom_id": None}, "invalid_custom_id", "custom_id"),
        (GOOD | {"custom_id": 1}, "invalid_custom_id", "custom_id"),
        ('{"custom_id": "\\ud800"}', "invalid_custom_id", "custom_id"),
        (GOOD | {"custom_id": "b", "method": "GET"}, "invalid_method", "method"),
        (GOOD | {"custom_id": "b", "url": "/v1/embeddings"}, "invalid_url", "url"),
        (GOOD | {"custom_id": "b", "url": "/v1/completions"}, "invalid_url", "url"),
        (GOOD | {"custom_id": "b", "body": []}, "invalid_body", "body"),
        (GOOD | {"custom_id": "b", "body": {"model": "other"}}, "model_not_found", "body.model"),
        (GOOD | {"custom_id": "b", "body": {"model": ["m"]}}, "model_not_found", "body.model"),
        (GOOD | {"custom_id": "b", "body": {"model": "m:nf4"}}, "mismatched_model", "body.model"),
    ],
)
def test_what_is_wrong_names_its_line(tmp_path: Path, line: Any, code: str, param: str | None) -> None:
    first = checked(tmp_path, [GOOD, "", line]).errors[0]
    assert (first.code, first.line, first.param) == (code, 3, param)


def test_an_empty_file_is_an_error_of_no_line(tmp_path: Path) -> None:
    assert [(error.code, error.line) for error in checked(tmp_path, [""]).errors] == [("empty_file", None)]


def test_reading_ends_at_too_many_requests_or_errors(tmp_path: Path) -> None:
    lines = [GOOD | {"custom_id": str(number)} for number in range(5)]
    assert [(error.code, error.line) for error in checked(tmp_path, lines, 3).errors] == [("too_many_requests", 4)]
    assert len(checked(tmp_path, ["{"] * 200, 1000).errors) == MAX_ERRORS
