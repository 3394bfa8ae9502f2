"""`tune` as a user runs it: a search, its file and its evidence, and mistakes that are told before any work."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

import autoscaling.simulator.cli
import autoscaling.tuning.cli
from autoscaling.tuning.fleet_file import EVIDENCE
from autoscaling.tuning.search_space import settings_of
from cluster.config import FleetConfig
from cluster.errors import UserError

LLAMA = Path(__file__).parents[3] / "engine" / "bench" / "llama-3.1-8b"
FLEET = f"""# Two variants.
model: {{source: {LLAMA}, name: llama}}
variants: {{bf16: {{method: none}}, fp8: {{method: fp8, quality: 0.995}}}}
slo_classes:
  interactive: {{ttft_ms: 500, tpot_ms: 40, fallback: degrade}}
  throughput: {{objective: throughput, fallback: queue, deadline_s: 600}}
default_class: interactive
engine: {{max_context: 16384}}
accelerator: H100-80G
autoscaling:
  headroom: 0.5  # generous
  budget: {{gpus: 6}}
"""
SHARES = ("--classes", "interactive=.8,throughput=.2")
SPEC = "diurnal:peak=24,trough=2,period_s=40,duration_s=80,prompt=3000,prompt_cv=0.3,output=150"
GOAL = "cost subject to attainment>=0.9"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "fleet.yaml").write_text(FLEET)
    return tmp_path


def run(command: str, *arguments: str) -> str:
    app = typer.Typer()
    app.callback()(lambda: None)
    autoscaling.tuning.cli.register(app)
    autoscaling.simulator.cli.register(app)
    result = CliRunner().invoke(app, [command, *SHARES, *arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def tune(*arguments: str) -> str:
    return run("tune", "--warm-up", "20", *arguments)


def test_the_best_goes_into_a_file_with_its_evidence(folder: Path) -> None:
    arguments = ("--generate", SPEC, "--objective", GOAL, "--trials", "3", "--seed", "3")
    output = tune(*arguments, "-o", "tuned.yaml")
    assert all(words in output for words in ("default", "trial", "first", "second", "GPU-hours", GOAL))
    text = (folder / "tuned.yaml").read_text()
    old, new = FleetConfig.load(), FleetConfig.load("tuned.yaml")
    assert new.model_dump(exclude={"autoscaling"}) == old.model_dump(exclude={"autoscaling"})
    assert new.autoscaling.budget == old.autoscaling.budget
    assert "# Two variants." in text
    assert "# generous" in text
    evidence = text[text.index(EVIDENCE) :]
    assert SPEC in evidence
    assert re.search(r"sha256 [0-9a-f]{64}, \d+ requests", evidence)
    assert "3 trials of TPE, seed 3" in evidence
    default, best = (
        float(cost) for cost in re.findall(r"first half: attainment [\d.]+, [\d.]+ GPU-hours, \$([\d.]+)", evidence)
    )
    assert best < default, "a headroom of 0.5 is easily beaten"
    assert settings_of(new.autoscaling) != settings_of(old.autoscaling)
    tune(*arguments, "-o", "again.yaml")
    assert (folder / "again.yaml").read_text() == text, "the same seed, the same file"


def test_simulate_with_the_tuned_file_gives_the_figures_of_its_evidence(folder: Path) -> None:
    """On a trace of the first half alone, which is what was tuned on; and so for the default."""
    rows = ["TIMESTAMP,ContextTokens,GeneratedTokens"]
    for number in range(600):
        at = f"2024-05-10 00:00:{number / 20:09.6f}+00:00"
        rows.append(f"{at},{4000 + 7 * number % 600},{140 + number % 50}")
    (folder / "whole.csv").write_text("\n".join(rows))
    (folder / "half.csv").write_text("\n".join(rows[:301]))
    tune("--trace", "whole.csv", "--objective", GOAL, "--trials", "3", "-o", "tuned.yaml")
    text = (folder / "tuned.yaml").read_text()
    assert (
        f"trace: whole.csv, sha256 {hashlib.sha256((folder / 'whole.csv').read_bytes()).hexdigest()}, 600 req" in text
    )
    figures = []
    for name, config in (("default", "fleet.yaml"), (r"best, trial \d", "tuned.yaml")):
        run("simulate", "--trace", "half.csv", "--config", config, "--warm-up", "20", "-o", "out")
        summary = json.loads((folder / "out" / "summary.json").read_text())
        figures.append(f"attainment {summary['lowest_attainment']:.4f}, {summary['gpu_hours']:.4f} GPU-hours")
        assert re.search(rf"# {name}, first half: {figures[-1]}", text)
    assert figures[0] != figures[1]


def test_the_file_itself_stays_as_it_is_where_the_default_is_best(folder: Path) -> None:
    output = tune("--generate", SPEC, "--objective", GOAL, "--trials", "1", "-o", "fleet.yaml")
    assert "none of 1 trials is better than the default" in output
    text = (folder / "fleet.yaml").read_text()
    assert text.startswith(FLEET)
    assert EVIDENCE in text.removeprefix(FLEET)


def test_a_bound_that_none_keeps(folder: Path) -> None:
    impossible = f"{GOAL} and gpu_hours<=0.001"
    with pytest.raises(UserError, match=r"none of 2 trials keeps it .* breaks gpu_hours<=0\.001") as caught:
        tune("--generate", SPEC, "--objective", impossible, "--trials", "2", "-o", "tuned.yaml")
    assert "\n" not in str(caught.value)
    assert not (folder / "tuned.yaml").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--objective", GOAL), "give either --trace FILE or --generate SPEC"),
        (("--objective", "coast", "--generate", SPEC), "no goal 'coast'"),
        (("--objective", GOAL, "--trace", "missing.csv"), "missing.csv: cannot be read"),
        (("--objective", GOAL, "--generate", "posson:rate=1"), "did you mean poisson?"),
        (("--objective", GOAL, "--generate", SPEC, "--rate", "-1"), "--rate: -1 is not above 0"),
        (("--objective", GOAL, "--generate", SPEC, "--config", "none.yaml"), "none.yaml"),
        (("--objective", GOAL, "--generate", SPEC, "--accelerator", "H100"), "did you mean H100-80G?"),
        (("--objective", GOAL, "--generate", SPEC, "--profiles", "nowhere"), "nowhere: cannot be read"),
        (("--objective", GOAL, "--generate", SPEC, "-o", "."), "is a folder; name a file in it"),
        (("--objective", GOAL, "--generate", SPEC, "-o", "none/tuned.yaml"), "no folder none; make it first"),
    ],
)
def test_a_mistake_is_told_before_any_work(folder: Path, arguments: tuple[str, ...], words: str) -> None:
    with pytest.raises(UserError) as caught:
        tune(*arguments)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert [path.name for path in folder.iterdir()] == ["fleet.yaml"]


def test_a_fleet_with_nothing_to_scale(folder: Path) -> None:
    fixed = "replicas: {bf16: {min: 1, max: 1}, fp8: {min: 2, max: 2}}\n"
    (folder / "fleet.yaml").write_text(f"{FLEET}  {fixed}")
    with pytest.raises(UserError, match=r"no setting changes anything; give one room, such as bf16: \{min: 0"):
        tune("--generate", SPEC, "--objective", GOAL)
