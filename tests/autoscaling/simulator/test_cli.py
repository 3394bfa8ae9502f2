"""`simulate` as a user runs it: on a trace, on made-up traffic, and with mistakes that are told before any work."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

import autoscaling.simulator.cli
from autoscaling.decision_log import replay
from cluster.errors import UserError

LLAMA = Path(__file__).parents[3] / "engine" / "bench" / "llama-3.1-8b"
FLEET = f"""
model: {{source: {LLAMA}, name: llama}}
variants: {{bf16: {{method: none}}, fp8: {{method: fp8, quality: 0.995}}}}
slo_classes:
  interactive: {{ttft_ms: 500, tpot_ms: 40, fallback: degrade}}
  throughput: {{objective: throughput, fallback: queue, deadline_s: 600}}
default_class: interactive
engine: {{max_context: 16384}}
accelerator: H100-80G
autoscaling: {{budget: {{gpus: 6}}}}
"""
SHARES = ("--classes", "interactive=.8,throughput=.2")
SPEC = "poisson:rate=8,duration_s=40"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "fleet.yaml").write_text(FLEET)
    return tmp_path


def run(*arguments: str) -> str:
    app = typer.Typer()
    app.callback()(lambda: None)
    autoscaling.simulator.cli.register(app)
    result = CliRunner().invoke(app, ["simulate", *SHARES, *arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_two_policies_side_by_side(folder: Path) -> None:
    run("--generate", SPEC, "--policy", "fixed", "--replicas", "bf16=2", "-o", "fixed")
    output = run("--generate", SPEC, "--policy", "kv-aware", "-o", "kv", "--compare", "fixed")
    for words in ("fixed: 2 bf16", "kv-aware", "interactive", "GPU-hours", "kv/report.html"):
        assert words in output
    summary = json.loads((folder / "fixed" / "summary.json").read_text())
    assert summary["attainment"] == 1.0
    assert summary["variants"].keys() == {"bf16"}
    assert "fixed: 2 bf16" in (folder / "kv" / "report.html").read_text()
    assert all(each.is_same for each in replay(folder / "kv" / "decisions.jsonl")), "the log replays"


def test_a_trace_at_a_rate_with_the_baseline(folder: Path) -> None:
    rows = [f"2024-05-10 00:00:{second:02d}.5+00:00,400,60" for second in range(60)]
    (folder / "azure.csv").write_text("\n".join(["TIMESTAMP,ContextTokens,GeneratedTokens", *rows]))
    arguments = ("--trace", "azure.csv", "--rate", "2", "--policy", "ongoing-requests", "--replicas", "bf16=1")
    output = run(*arguments, "--target-ongoing-requests", "4", "-o", "one")
    assert "ongoing requests, 4 a replica" in output
    assert json.loads((folder / "one" / "summary.json").read_text())["duration_s"] < 31
    run(*arguments, "-o", "best")
    assert "the best of 8 to 128" in json.loads((folder / "best" / "summary.json").read_text())["policy"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "give either --trace FILE or --generate SPEC"),
        (("--generate", SPEC, "--trace", "x.csv"), "give either --trace FILE or --generate SPEC"),
        (("--trace", "missing.csv"), "missing.csv: cannot be read"),
        (("--generate", "posson:rate=1"), "did you mean poisson?"),
        (("--generate", SPEC, "--policy", "kv-awre"), "did you mean kv-aware?"),
        (("--generate", SPEC, "--policy", "fixed"), "add --replicas bf16=4"),
        (("--generate", SPEC, "--replicas", "bf61=2"), "no variant 'bf61'; did you mean bf16?"),
        (("--generate", SPEC, "--replicas", "bf16=two"), "write bf16=2"),
        (("--generate", SPEC, "--replicas", "bf16=0"), "starts none"),
        (("--generate", SPEC, "--rate", "0"), "--rate: 0 is not above 0"),
        (("--generate", SPEC, "--classes", "fast=1"), "--classes: no SLO class 'fast'"),
        (("--generate", SPEC, "--accelerator", "H100"), "did you mean H100-80G?"),
        (("--generate", SPEC, "--profiles", "nowhere"), "nowhere: cannot be read"),
        (("--generate", SPEC, "--profiles", "."), "no profile of bf16 on H100-80G"),
        (("--generate", SPEC, "--target-ongoing-requests", "few"), "neither `best` nor a number above 0"),
        (("--generate", SPEC, "--cold-start", "int4=3"), "--cold-start: no variant 'int4'"),
        (("--generate", SPEC, "--cold-start", "bf16=soon"), "write bf16=40 for 40 s"),
        (("--generate", SPEC, "--compare", "nothing"), "nothing/summary.json: cannot be read"),
        (("--generate", SPEC, "--config", "none.yaml"), "none.yaml"),
    ],
)
def test_a_mistake_is_told_before_any_work(folder: Path, arguments: tuple[str, ...], words: str) -> None:
    with pytest.raises(UserError) as caught:
        run(*arguments, "-o", "out")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (folder / "out").exists()


def test_a_budget_too_small_for_the_minima(folder: Path) -> None:
    minima = "{budget: {gpus: 2}, replicas: {bf16: {min: 3, max: 4}}}"
    (folder / "fleet.yaml").write_text(FLEET.replace("{budget: {gpus: 6}}", minima))
    with pytest.raises(UserError, match=r"autoscaling\.budget\.gpus: 2 GPUs .* too few"):
        run("--generate", SPEC, "-o", "out")
    with pytest.raises(UserError, match=r"bf16=5 is above autoscaling\.replicas\.bf16\.max 4"):
        run("--generate", SPEC, "--replicas", "bf16=5", "-o", "out")
