"""A job end to end: real files, real Ray, the real model; and what a killed or interrupted job leaves."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest

from batch_jobs.generate import GenerateJob, run_generate
from batch_jobs.local_ray import job_ray
from batch_jobs.writing import RESULT_SCHEMA
from cluster.config import FleetConfig
from cluster.errors import UserError

pytestmark = pytest.mark.ray

CONFIG = FleetConfig.of({"model": {"source": "embedded:smollm2-135m"}, "engine": {"max_context": 256}})
CHAT = [{"role": "user", "content": "Name a colour."}]
LINES = [
    json.dumps({"id": "q0", "prompt": "What is 2 + 2?"}),
    '{"id": "broken", "prompt": "cut',
    json.dumps({"prompt": "Say hello."}),
    json.dumps({"id": "chat", "messages": CHAT}),
    json.dumps({"id": "null", "prompt": None}),
    json.dumps({"id": "number", "prompt": 5}),
    json.dumps({"id": "long", "prompt": "word " * 300}),
    json.dumps({"id": "role", "messages": [{"role": "user"}]}),
    *(json.dumps({"id": f"more{i}", "prompt": f"Count to {i}."}) for i in range(12)),
]
BAD = {"in.jsonl:2", "null", "number", "long", "role"}


@pytest.fixture(scope="module")
def ray_running(checkpoint: Path) -> Iterator[None]:
    with job_ray():
        yield


@pytest.fixture
def job(tmp_path: Path) -> GenerateJob:
    (tmp_path / "in.jsonl").write_text("\n".join(LINES))
    return GenerateJob(
        inputs=(str(tmp_path / "in.jsonl"),),
        output=tmp_path / "out",
        config=CONFIG,
        variant="int8",
        max_tokens=6,
        rows_per_file=8,
        format="parquet",
    )


def test_every_row_comes_out_once_in_the_ray_that_is_there(ray_running: None, job: GenerateJob) -> None:
    report = run_generate(job)
    assert (report.rows, report.errors, report.variant) == (20, len(BAD), "int8")
    assert sorted(job.output.iterdir()) == list(report.files)
    assert [pq.read_metadata(file).num_rows for file in report.files] == [8, 8, 4]
    assert pq.read_schema(report.files[0]).equals(RESULT_SCHEMA)
    rows = {row["id"]: row for file in report.files for row in pq.read_table(file).to_pylist()}
    assert set(rows) == {json.loads(line).get("id", "in.jsonl:3") for line in LINES if "cut" not in line} | {
        "in.jsonl:2"
    }
    errors = {row_id: row["error"] for row_id, row in rows.items() if row["error"]}
    assert set(errors) == {"in.jsonl:2", "null", "number", "long", "role"} | ({"broken"} & set(errors))
    good = [row for row in rows.values() if not row["error"]]
    assert all(row["text"] and row["prompt_tokens"] > 10 for row in good)
    assert all(1 <= row["completion_tokens"] <= 6 for row in good)
    assert {row["finish_reason"] for row in good} <= {"length", "stop"}
    assert {row["finish_reason"] for row in rows.values() if row["error"]} == {"error"}
    assert json.loads(rows["chat"]["prompt"]) == CHAT
    assert report.completion_tokens == sum(row["completion_tokens"] for row in good)
    assert "tokens/s" in report.batch_size_reason
    with pytest.raises(UserError, match="holds results already"):
        run_generate(job)


def test_seeded_texts_do_not_depend_on_the_other_rows(ray_running: None, job: GenerateJob) -> None:
    def texts(output: str, **changes: object) -> dict[str, str]:
        report = run_generate(replace(job, output=job.output / output, format="jsonl", **changes))
        lines = [json.loads(line) for file in report.files for line in file.read_text().splitlines()]
        return {line["id"]: line["text"] for line in lines if not line["error"]}

    seeded = texts("seeded", temperature=1.0, seed=7)
    few = texts("few", temperature=1.0, seed=7, limit=4)
    assert len(few) == 3
    assert all(seeded[row_id] == text for row_id, text in few.items())


SCRIPT = """
import sys
from pathlib import Path
from batch_jobs.cli import interruptible
from batch_jobs.generate import GenerateJob, run_generate
from cluster.config import FleetConfig
job = GenerateJob(inputs=(sys.argv[1],), output=Path(sys.argv[2]), config=FleetConfig.built_in(), variant="int8",
                  max_tokens=8, rows_per_file=4)
with interruptible():
    run_generate(job)
"""


@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGTERM])
def test_an_ended_job_leaves_whole_files_and_no_engine(
    checkpoint: Path, tmp_path: Path, ending: signal.Signals
) -> None:
    (tmp_path / "in.txt").write_text("Tell me a story.\n" * 2000)
    out = tmp_path / "out"
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "in.txt"), str(out)]
    with (
        tempfile.TemporaryDirectory(dir="/tmp", ignore_cleanup_errors=True) as folder,  # short enough for Ray's sockets
        subprocess.Popen(command, env=os.environ | {"TMPDIR": folder}, stderr=subprocess.DEVNULL) as process,
    ):
        wait_for(lambda: out.exists() and len(list(out.glob("*.jsonl"))) >= 2, 120)
        family = [child for child in psutil.Process(process.pid).children(recursive=True) if not is_agent(child)]
        process.send_signal(ending)
        assert process.wait(20) != 0
    wait_for(lambda: not any(is_running(member) for member in family), 20)
    files = sorted(out.glob("*.jsonl"))
    assert [len(file.read_text().splitlines()) for file in files[:2]] == [4, 4]
    for file in files:
        assert all(json.loads(line)["text"] for line in file.read_text().splitlines())
    assert all(file.suffix in (".jsonl", ".staging") for file in out.iterdir())


def wait_for(condition, timeout_s: float) -> None:  # type: ignore[no-untyped-def]
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.1)


def is_agent(process: psutil.Process) -> bool:
    """Ray's agents outlive a killed raylet by the two minutes in which they try to tell of its end."""
    return any("Agent" in word or "agent.py" in word for word in process.cmdline()[:4])


def is_running(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
