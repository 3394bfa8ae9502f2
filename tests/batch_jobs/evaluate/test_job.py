"""The whole command on real Ray: its figures are transformers' own, and what a failing task tells is one line."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
import yaml
from ray.exceptions import RayTaskError, WorkerCrashedError
from typer.testing import CliRunner

from batch_jobs.evaluate.ray_streams import in_one_line, run_tasks
from batch_jobs.local_ray import job_ray
from cluster.config import FleetConfig
from cluster.errors import UserError
from engine.text import TextCodec
from quantfleet import app
from tests.batch_jobs.evaluate.counting import count_or_fail

CONTEXT, TOKENS = 64, 192
ENGINE = {"max_context": 512, "kv_capacity_tokens": 512}


@pytest.fixture(scope="module")
def ray_running(tiny: Path) -> Iterator[None]:
    with job_ray():
        yield


def evaluate(tiny: Path, text: Path, tmp_path: Path, *options: str) -> dict[str, Any]:
    """The command's report, of bf16 and nf4."""
    fleet, prompts = tmp_path / "fleet.yaml", tmp_path / "prompts.jsonl"
    variants = {"bf16": {}, "nf4": {"method": "nf4"}}
    fleet.write_text(yaml.safe_dump({"model": {"source": str(tiny)}, "engine": ENGINE, "variants": variants}))
    prompts.write_text('{"prompt": "Hello."}\n{"prompt": "Name a colour."}\n')
    files = ["--text", text, "--prompts", prompts, "-c", fleet, "-o", tmp_path / "out"]
    windows = ["--context", str(CONTEXT), "--max-tokens", str(TOKENS)]
    done = CliRunner().invoke(app, ["evaluate", "nf4", *map(str, files), *windows, *options])
    assert done.exit_code == 0, done.output
    return json.loads((tmp_path / "out" / "report.json").read_text())


@pytest.mark.ray
def test_the_command_measures_quality_and_registers_it(
    ray_running: None, tiny: Path, text: Path, tmp_path: Path
) -> None:
    said = evaluate(tiny, text, tmp_path, "--no-speed", "--register")
    bf16, nf4 = said["variants"]
    assert bf16["perplexity"] == pytest.approx(transformers_perplexity(tiny, text), rel=0.005)
    assert (bf16["name"], bf16["quality"], bf16["kl"], bf16["top1_agreement"]) == ("bf16", 1.0, 0.0, 1.0)
    assert (bf16["greedy_agreement"], bf16["greedy_leading_agreement"]) == (1.0, 1.0)
    assert (nf4["name"], nf4["quality"]) == ("nf4", bf16["perplexity"] / nf4["perplexity"])
    assert nf4["kl"] > 0
    assert nf4["weight_bytes"] < bf16["weight_bytes"]
    assert (said["text"]["tokens"], said["text"]["scored_tokens"]) == (TOKENS, TOKENS - TOKENS // CONTEXT)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"report.json", "report-quality-bytes.png"}
    registered = FleetConfig.load(tmp_path / "fleet.yaml").variants["nf4"].quality
    assert registered == pytest.approx(nf4["quality"], abs=1e-4)


@pytest.mark.ray
@pytest.mark.slow
def test_the_command_measures_speed_too(ray_running: None, tiny: Path, text: Path, tmp_path: Path) -> None:
    variants = evaluate(tiny, text, tmp_path)["variants"]
    assert all(variant[f"tokens_per_s_{batch}"] > 0 for variant in variants for batch in ("batch_1", "best_batch"))
    assert (tmp_path / "out" / "report-quality-speed.png").exists()


def transformers_perplexity(folder: Path, text: Path) -> float:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = torch.tensor(TextCodec(folder).encode(text.read_text())[:TOKENS]).view(-1, CONTEXT)
    with torch.inference_mode():
        logprobs = torch.log_softmax(model(ids).logits[:, :-1].double(), -1)
    return math.exp(-float(logprobs.gather(2, ids[:, 1:, None]).mean()))


@pytest.mark.ray
def test_tasks_tell_their_steps_results_and_mistakes(ray_running: None) -> None:
    tasks = {"good": "result", "bad": "mistake"}
    news = run_tasks(count_or_fail, tasks, at_once=1, num_gpus=0)
    assert [(item.name, item.result) for item in (next(news), next(news))] == [("good", None), ("good", "result")]
    assert next(news).result is None
    with pytest.raises(UserError, match=r"^bad: tensor x is missing$"):
        next(news)


def test_a_failure_that_is_no_bug_is_one_line() -> None:
    damaged = RayTaskError("measure", "traceback", ArithmeticError("the output is not finite"))
    assert str(in_one_line("v", damaged)) == "v: the output is not finite; make the checkpoint anew"
    assert "want of memory" in str(in_one_line("v", WorkerCrashedError()))
    bug = RayTaskError("measure", "traceback", KeyError("x"))
    assert in_one_line("v", bug) is bug
