"""A job end to end: real files, real Ray, the real model; and what a killed or interrupted job leaves."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest
from openai.types import Completion
from openai.types.chat import ChatCompletion

from batch_jobs.generate import GenerateJob, run_generate
from batch_jobs.local_ray import job_ray
from batch_jobs.openai_lines import CHAT_URL, COMPLETION_URL
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
    assert sorted(job.output.glob("*.*")) == list(report.files)
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
    assert {row["fingerprint"] for row in rows.values()} == {report.fingerprint}
    again = run_generate(job)
    assert (again.is_finished, again.rows, again.rows_before, again.files) == (True, 20, 20, report.files)
    with pytest.raises(
        UserError, match=r"sampling.max_tokens was 6 and is 7; set it back, give another -o, or --new-run"
    ):
        run_generate(replace(job, max_tokens=7))


def test_seeded_texts_do_not_depend_on_the_other_rows(ray_running: None, job: GenerateJob) -> None:
    def texts(output: str, **changes: object) -> dict[str, str]:
        report = run_generate(replace(job, output=job.output / output, format="jsonl", **changes))
        lines = [json.loads(line) for file in report.files for line in file.read_text().splitlines()]
        return {line["id"]: line["text"] for line in lines if not line["error"]}

    seeded = texts("seeded", temperature=1.0, seed=7)
    few = texts("few", temperature=1.0, seed=7, limit=4)
    assert len(few) == 3
    assert all(seeded[row_id] == text for row_id, text in few.items())


def test_an_openai_batch_comes_back_as_openai_answers(ray_running: None, job: GenerateJob, tmp_path: Path) -> None:
    model = CONFIG.model.name
    chat = {"model": model, "messages": CHAT, "max_tokens": 5, "temperature": 1.5, "seed": 11}
    bodies = {
        "first": chat,
        "same seed": chat,
        "sky": {"model": f"{model}:int8", "prompt": "The sky is", "max_tokens": 3, "temperature": 0, "logprobs": 1},
        "tools": chat | {"tools": [{"type": "function"}]},
        "model": chat | {"model": "gpt-4o"},
        "more": chat | {"seed": 12, "logprobs": True, "max_tokens": 9},
    }
    urls = {name: CHAT_URL if "messages" in body else COMPLETION_URL for name, body in bodies.items()}
    lines = [{"custom_id": name, "method": "POST", "url": urls[name], "body": body} for name, body in bodies.items()]
    path = tmp_path / "batch.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in [*lines, lines[0]]))
    report = run_generate(replace(job, inputs=(str(path),), format="openai-batch"))
    assert (report.rows, report.errors) == (7, 3)
    assert [file.name for file in report.files] == ["part-000000.jsonl", "errors-000000.jsonl"]
    results, errors = ([json.loads(line) for line in file.read_text().splitlines()] for file in report.files)
    answers = {line["custom_id"]: line["response"]["body"] for line in results}
    assert set(answers) == {"first", "same seed", "sky", "more"}
    chats = {name: ChatCompletion.model_validate(answers[name]) for name in ("first", "same seed", "more")}
    assert chats["first"].choices == chats["same seed"].choices
    assert chats["first"].choices[0].message.content != chats["more"].choices[0].message.content
    assert chats["first"].usage is not None
    assert 1 <= chats["first"].usage.completion_tokens <= 5
    logprobs = chats["more"].choices[0].logprobs
    assert logprobs is not None
    assert len(logprobs.content or []) == chats["more"].usage.completion_tokens  # type: ignore[union-attr]
    sky = Completion.model_validate(answers["sky"])
    assert sky.model == f"{model}:int8"
    assert sky.choices[0].logprobs is not None
    assert "".join(sky.choices[0].logprobs.tokens or []) == sky.choices[0].text
    codes = {line["custom_id"]: line["response"]["status_code"] for line in errors}
    assert codes == {"tools": 400, "model": 404, "first": 400}
    again = run_generate(replace(job, inputs=(str(path),), format="openai-batch"))
    assert (again.is_finished, again.rows_before, again.files) == (True, 7, report.files)


SCRIPT = """
import sys
from pathlib import Path
from batch_jobs.cli import interruptible
from batch_jobs.generate import GenerateJob, run_generate
from cluster.config import FleetConfig
job = GenerateJob(inputs=(sys.argv[1],), output=Path(sys.argv[2]), config=FleetConfig.built_in(), variant="int8",
                  max_tokens=8, rows_per_file=4, raw=True)
with interruptible():
    sys.exit(not run_generate(job).is_finished)
"""


def test_a_killed_job_goes_on_where_it_was(ray_running: None, tmp_path: Path) -> None:
    """Its engine's death it does not even notice; each row is there once in the end."""
    runs = Runs(tmp_path, 120)
    with runs.started() as process:
        family = runs.when_files_grow(process, 1)
        named(family, "engine.process_main").kill()  # type: ignore[union-attr]
        runs.when_files_grow(process, 5)
        process.kill()
    runs.wait_for_end(family)
    assert run_generate(runs.job).is_finished
    runs.check()


def test_a_signal_ends_a_job_politely_and_it_goes_on(ray_running: None, tmp_path: Path) -> None:
    runs = Runs(tmp_path, 200)

    def ask_once_there_is_a_file() -> None:
        wait_for(lambda: any(runs.out.glob("*.jsonl")), 120)
        os.kill(os.getpid(), signal.SIGTERM)

    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(ask_once_there_is_a_file)
        first = run_generate(runs.job)
        asking.result()
    assert not first.is_finished
    assert 0 < first.rows < 200
    second = run_generate(runs.job)
    assert (second.is_finished, second.rows_before) == (True, first.rows)
    runs.check()


@pytest.mark.slow
def test_twenty_kills_of_drivers_raylets_and_engines_cost_no_row(checkpoint: Path, tmp_path: Path) -> None:
    runs, draw = Runs(tmp_path, 2000), random.Random(0)
    for number in range(20):
        victim = ("driver", "raylet", "engine.process_main")[number % 3]
        with runs.started() as process:
            family = runs.when_files_grow(process, 0)
            time.sleep(draw.uniform(0, 12))
            if victim == "driver":
                process.kill()
            else:
                named(relatives(process), victim).kill()  # type: ignore[union-attr]
                time.sleep(draw.uniform(0, 6))
            if victim == "engine.process_main":
                process.kill()
            process.wait(120)
        runs.wait_for_end(family)
    assert runs.started().wait(1800) == 0
    runs.check()


class Runs:
    """One job, started again and again."""

    def __init__(self, folder: Path, num_lines: int) -> None:
        self.out = folder / "out"
        self._num_lines = num_lines
        (folder / "in.txt").write_text("".join(f"Tell me story {i}.\n" for i in range(num_lines)))
        self._command = [sys.executable, "-c", SCRIPT, str(folder / "in.txt"), str(self.out)]
        self.job = GenerateJob(
            inputs=(str(folder / "in.txt"),),
            output=self.out,
            config=FleetConfig.built_in(),
            variant="int8",
            max_tokens=8,
            rows_per_file=4,
            raw=True,
        )

    def started(self) -> "subprocess.Popen[bytes]":
        return subprocess.Popen(self._command, stderr=subprocess.DEVNULL)

    def when_files_grow(self, process: "subprocess.Popen[bytes]", at_least: int) -> list[psutil.Process]:
        """Once its engine runs and it has written so many more files: its children."""
        before = self._num_files()
        running = partial(named, name="engine.process_main")
        wait_for(lambda: self._num_files() >= before + at_least and running(relatives(process)) is not None, 180)
        return relatives(process)

    def wait_for_end(self, family: list[psutil.Process]) -> None:
        wait_for(lambda: not any(is_running(member) for member in family), 60)
        assert all(json.loads(line)["error"] is None for file in self.out.glob("*.jsonl") for line in file.open())

    def check(self) -> None:
        rows = [json.loads(line) for file in sorted(self.out.glob("*.jsonl")) for line in file.open()]
        assert sorted(row["id"] for row in rows) == sorted(f"in.txt:{i + 1}" for i in range(self._num_lines))
        assert len({row["fingerprint"] for row in rows}) == 1
        assert not any(row["error"] for row in rows)
        assert not [path for path in self.out.rglob("*") if path.suffix == ".staging"]

    def _num_files(self) -> int:
        return len(list(self.out.glob("*.jsonl")))


def relatives(process: "subprocess.Popen[bytes]") -> list[psutil.Process]:
    return [child for child in psutil.Process(process.pid).children(recursive=True) if not is_agent(child)]


def named(family: list[psutil.Process], name: str) -> psutil.Process | None:
    return next((member for member in family if is_running(member) and name in " ".join(member.cmdline()[:4])), None)


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
