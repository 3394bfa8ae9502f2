"""`plan` as a user runs it: on this host, for hardware one does not have, and with mistakes."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

import autoscaling.cli
from cluster.errors import UserError
from cluster.profile import Profile, ProfileKey, ProfilePoint, StepShape

LLAMA_8B = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
    "vocab_size": 128256,
    "tie_word_embeddings": False,
}


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("QUANTFLEET_CACHE", str(tmp_path / "cache"))


def run(*arguments: str) -> str:
    app = typer.Typer()
    app.callback()(lambda: None)
    autoscaling.cli.register(app)
    result = CliRunner().invoke(app, ["plan", *arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_the_built_in_fleet_on_this_host() -> None:
    output = run()
    for words in ("23,040 B", "B_ridge", "B_best", "cost per million tokens", "bf16", "int8", "nf4", "paged (512)"):
        assert words in output
    assert "by the roofline, not measured here" in " ".join(output.split())


def test_hardware_and_a_model_one_does_not_have(tmp_path: Path) -> None:
    (tmp_path / "llama").mkdir()
    (tmp_path / "llama" / "config.json").write_text(json.dumps(LLAMA_8B))
    (tmp_path / "fleet.yaml").write_text("model: {source: llama}\n")
    output = run("--accelerator", "H100-80G", "--context", "1024")
    assert "8,030.3 M parameters" in output
    assert re.search(r"bf16 .*16\.06 GB .*15\.01 GB", output)
    assert re.search(r"bf16 .* 295\.2 ", output)
    assert "paged (1024)" in output


def test_the_arithmetic_adds_up() -> None:
    output = " ".join(run("--accelerator", "L4").split())
    found = re.search(r"= ([\d.]+) GB\) / \(16 x 23040 B\) -> (\d+) blocks = (\d+) tokens", output)
    assert found is not None
    available, blocks, tokens = float(found[1]) * 1e9, int(found[2]), int(found[3])
    assert blocks == pytest.approx(available / (16 * 23040), rel=1e-3)
    assert tokens == 16 * blocks


def test_a_measured_profile_is_used_and_named(tmp_path: Path) -> None:
    from cluster.accelerators import detect_cpu

    shapes = [StepShape(decode_sequences=batch, kv_tokens=100 * batch) for batch in (1, 8, 32)]
    key = ProfileKey(
        model="smollm2-135m", variant="int8", accelerator=detect_cpu().name, threads=_threads(), versions={}
    )
    points = tuple(ProfilePoint(shape=shape, step_s=7.0 * shape.decode_sequences) for shape in shapes)
    Profile(key=key, points=points, measured_at="2026-11-22").save(tmp_path / "cache" / "profiles" / "a.json")
    output = run("--context", "100")
    assert "corrected by 3 points measured 2026-11-22" in " ".join(output.split())
    assert "7,000" in output


def _threads() -> int:
    from cluster.cpu_host import usable_cores

    return max(1, usable_cores() // 3)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(["--accelerator", "H1000"], "not in the registry"), (["none.yaml"], "no such file")],
)
def test_mistakes_are_one_line(arguments: list[str], words: str) -> None:
    with pytest.raises(UserError, match=words):
        run(*arguments)
