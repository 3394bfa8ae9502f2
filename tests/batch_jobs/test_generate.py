"""A job end to end: real files, real Ray, a real engine; its results, and what it does not depend on."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from openai.types import Completion
from openai.types.chat import ChatCompletion

from batch_jobs.generate import GenerateJob, run_generate
from batch_jobs.local_ray import job_ray
from batch_jobs.openai_lines import CHAT_URL, COMPLETION_URL
from batch_jobs.report import GenerateReport
from batch_jobs.writing import RESULT_SCHEMA
from cluster.config import FleetConfig
from cluster.errors import UserError
from engine.text import TextCodec

pytestmark = pytest.mark.ray

CHAT = [{"role": "user", "content": "Name a colour."}]
LINES = [
    json.dumps({"id": "q0", "prompt": "What is 2 + 2?"}),
    '{"id": "broken", "prompt": "cut',
    json.dumps({"prompt": "Say hello."}),
    json.dumps({"id": "chat", "messages": CHAT}),
    json.dumps({"id": "null", "prompt": None}),
    json.dumps({"id": "number", "prompt": 5}),
    json.dumps({"id": "long", "prompt": "word " * 80}),
    json.dumps({"id": "role", "messages": [{"role": "user"}]}),
    *(json.dumps({"id": f"more{i}", "prompt": f"Count to {i}."}) for i in range(12)),
]
BAD = {"in.jsonl:2", "null", "number", "long", "role"}


@pytest.fixture(scope="module")
def job(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> GenerateJob:
    folder = tmp_path_factory.mktemp("job")
    (folder / "in.jsonl").write_text("\n".join(LINES))
    return GenerateJob(
        inputs=(str(folder / "in.jsonl"),),
        output=folder / "out",
        config=FleetConfig.of(
            {
                "model": {"source": str(tiny_checkpoint)},
                "variants": {"int8": {"method": "int8"}},
                "engine": {"max_context": 256},
            }
        ),
        max_tokens=6,
        temperature=1.0,
        seed=7,
        rows_per_file=8,
        format="parquet",
    )


@pytest.fixture(scope="module")
def ray_running() -> Iterator[None]:
    with job_ray():
        yield


@pytest.fixture(scope="module")
def report(ray_running: None, job: GenerateJob) -> GenerateReport:
    return run_generate(job)


def rows_of(report: GenerateReport) -> dict[str, dict[str, object]]:
    return {row["id"]: row for file in report.files for row in pq.read_table(file).to_pylist()}


def test_every_row_comes_out_once_in_the_ray_that_is_there(job: GenerateJob, report: GenerateReport) -> None:
    assert (report.rows, report.errors, report.variant) == (20, len(BAD), "int8")
    assert sorted(job.output.glob("*.*")) == list(report.files)
    assert [pq.read_metadata(file).num_rows for file in report.files] == [8, 8, 4]
    assert pq.read_schema(report.files[0]).equals(RESULT_SCHEMA)
    rows = rows_of(report)
    assert set(rows) == {json.loads(line).get("id", "in.jsonl:3") for line in LINES if "cut" not in line} | {
        "in.jsonl:2"
    }
    assert {row_id for row_id, row in rows.items() if row["error"]} == BAD
    good = [row for row in rows.values() if not row["error"]]
    assert all(row["text"] and row["prompt_tokens"] > 10 for row in good)
    assert all(1 <= row["completion_tokens"] <= 6 for row in good)
    assert {row["finish_reason"] for row in good} <= {"length", "stop"}
    assert {row["finish_reason"] for row in rows.values() if row["error"]} == {"error"}
    assert json.loads(rows["chat"]["prompt"]) == CHAT
    assert report.completion_tokens == sum(row["completion_tokens"] for row in good)
    assert "tokens/s" in report.batch_size_reason
    assert {row["fingerprint"] for row in rows.values()} == {report.fingerprint}


def test_a_finished_job_does_nothing_and_another_is_refused(job: GenerateJob, report: GenerateReport) -> None:
    again = run_generate(job)
    assert (again.is_finished, again.rows, again.rows_before, again.files) == (True, 20, 20, report.files)
    with pytest.raises(
        UserError, match=r"sampling.max_tokens was 6 and is 7; set it back, give another -o, or --new-run"
    ):
        run_generate(replace(job, max_tokens=7))


def test_seeded_texts_do_not_depend_on_the_other_rows(job: GenerateJob, report: GenerateReport, tmp_path: Path) -> None:
    few = run_generate(replace(job, output=tmp_path / "few", limit=4))
    texts = {row_id: row["text"] for row_id, row in rows_of(few).items() if not row["error"]}
    assert len(texts) == 3
    assert texts.items() <= {row_id: row["text"] for row_id, row in rows_of(report).items()}.items()


def test_an_openai_batch_comes_back_as_openai_answers(ray_running: None, job: GenerateJob, tmp_path: Path) -> None:
    model, checkpoint = job.config.model.name, job.config.model.source
    chat = {"model": model, "messages": CHAT, "max_tokens": 5, "temperature": 1.5, "seed": 11}
    bodies = {
        "first": chat,
        "same seed": chat,
        "sky": {"model": f"{model}:int8", "prompt": "The sky is", "max_tokens": 3, "temperature": 0, "logprobs": 1}
        | {"logit_bias": {TextCodec(checkpoint).encode("a")[0]: 100}},  # of random bytes few are a character
        "tools": chat | {"tools": [{"type": "function"}]},
        "model": chat | {"model": "gpt-4o"},
        "more": chat | {"seed": 12, "logprobs": True, "max_tokens": 9},
    }
    urls = {name: CHAT_URL if "messages" in body else COMPLETION_URL for name, body in bodies.items()}
    lines = [{"custom_id": name, "method": "POST", "url": urls[name], "body": body} for name, body in bodies.items()]
    path = tmp_path / "batch.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in [*lines, lines[0]]))
    batch = replace(
        job, inputs=(str(path),), output=tmp_path / "out", format="openai-batch", temperature=0.0, seed=None
    )
    report = run_generate(batch)
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
    assert "".join(sky.choices[0].logprobs.tokens or []) == sky.choices[0].text == "aaa"
    codes = {line["custom_id"]: line["response"]["status_code"] for line in errors}
    assert codes == {"tools": 400, "model": 404, "first": 400}
    again = run_generate(batch)
    assert (again.is_finished, again.rows_before, again.files) == (True, 7, report.files)
