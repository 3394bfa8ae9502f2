"""Batches on disk with rows that a job has done, without a job."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from batch_jobs.fingerprint import Fingerprint
from batch_jobs.job_folder import PLACED_SCHEMA, JobFolder
from batch_jobs.openai_results import RowAnswer
from cluster.config import FleetConfig
from serve_app.batches.batch_folder import BatchFolder
from serve_app.batches.ids import BATCH_PREFIX, FILE_PREFIX, new_id
from serve_app.batches.record import WINDOW_S, BatchRequest
from serve_app.batches.shelf import Shelves

NUM_LINES = 6
MODEL = "small"


@pytest.fixture
def shelves(tmp_path: Path) -> Shelves:
    (tmp_path / "batches").mkdir()
    return Shelves(folder=tmp_path / "batches")


@pytest.fixture
def batch_config(shelves: Shelves) -> FleetConfig:
    return FleetConfig.of(
        {
            "model": {"name": MODEL, "source": "embedded:smollm2-135m"},
            "batches": {"folder": str(shelves.folder), "max_requests": 100},
        }
    )


def input_line(number: int, **changes: object) -> str:
    body = {"model": MODEL, "messages": [{"role": "user", "content": "Hello"}]}
    record = {"custom_id": f"r{number}", "method": "POST", "url": "/v1/chat/completions", "body": body}
    return json.dumps(record | changes) + "\n"


@pytest.fixture
def new_batch(shelves: Shelves) -> Callable[..., BatchFolder]:
    def new(content: str | bytes | None = None, age_s: float = 0.0) -> BatchFolder:
        shelf = shelves.of_caller("local")
        with shelf.files.staged() as staged:
            lines = "".join(map(input_line, range(NUM_LINES))) if content is None else content
            staged.write(lines.encode() if isinstance(lines, str) else lines)
            file = shelf.files.keep(staged, "requests.jsonl", "batch", None)
        created_at = int(time.time() - age_s)
        request = BatchRequest(
            id=new_id(BATCH_PREFIX),
            endpoint="/v1/chat/completions",
            input_file_id=file.id,
            output_file_id=new_id(FILE_PREFIX),
            error_file_id=new_id(FILE_PREFIX),
            created_at=created_at,
            expires_at=created_at + WINDOW_S,
        )
        return shelf.batches.create(request, shelf.files.content(file))

    return new


def do_rows(batch: BatchFolder, *numbers: int, bad: int | None = None) -> None:
    """As a job leaves them that was killed: two are in a file, the others in its journal."""
    folder = JobFolder.open(batch.jobs[-1].output, Fingerprint(settings={}), "openai-batch", 2, lambda: NUM_LINES)
    rows = [
        {
            "id": f"r{number}",
            "prompt": "p",
            "text": "täxt",
            "prompt_tokens": 3,
            "completion_tokens": 2,
            "finish_reason": "stop",
            "variant": "bf16",
            "fingerprint": "f",
            "error": "bad" if number == bad else None,
            "answer": RowAnswer(status=400 if number == bad else 200).encoded(),
            "place": {"file": 0, "begin": number, "end": number + 1, "first": number + 1, "number": number + 1},
        }
        for number in numbers
    ]
    folder.add(pa.Table.from_pylist(rows, schema=PLACED_SCHEMA))
    folder.close()
