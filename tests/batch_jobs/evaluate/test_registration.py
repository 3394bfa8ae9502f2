"""Qualities reach fleet.yaml and a checkpoint's own card; nothing else in either changes."""

from __future__ import annotations

import json
from pathlib import Path

from batch_jobs.evaluate.registration import register
from cluster.config import FleetConfig
from tests.batch_jobs.evaluate.reports import report_of, score_of

FLEET = """model: {source: embedded:smollm2-135m}
variants:
  bf16: {}
  int8: {method: int8}  # fast

# the end
"""
CARD = "# made\n\nQuality: not measured yet; `quantfleet evaluate` does it.\n\n- Calibration: none\n"
NF4 = '{"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": true, "bnb_4bit_quant_type": "nf4"}}'


def test_names_and_folders_are_registered(tmp_path: Path) -> None:
    file, folder = tmp_path / "fleet.yaml", tmp_path / "made"
    file.write_text(FLEET)
    folder.mkdir()
    (folder / "config.json").write_text(NF4)
    (folder / "quantfleet.json").write_text('{"method": "nf4", "calibration": null}')
    (folder / "README.md").write_text(CARD)
    report = report_of(
        score_of("bf16", 1.0, 269), score_of("int8", 0.98, 163), score_of("made", 0.81, 113, method="nf4")
    )
    for _ in range(2):  # registering again changes the same places
        told = register(report, file, {"made": folder})
        variants = FleetConfig.load(file).variants
        assert (variants["int8"].quality, variants["made"].quality) == (0.98, 0.81)
        assert (variants["made"].method, variants["made"].source) == ("nf4", str(folder))
        assert "bf16: {}" in file.read_text()
        assert "# fast\n" in file.read_text()
        assert len(told) == 3
        said = json.loads((folder / "quantfleet.json").read_text())
        assert said["quality"]["quality"] == 0.81
        assert said["quality"]["text"] == {"name": "text.txt", "sha256": "ab" * 32}
        assert said["method"] == "nf4"
        lines = (folder / "README.md").read_text().splitlines()
        assert lines[2].startswith("Quality: 0.8100 (perplexity 20.00 of bf16 / 24.69")
        assert [*lines[:2], *lines[3:]] == ["# made", "", "", "- Calibration: none"]
    assert {path.name for path in tmp_path.iterdir()} == {"fleet.yaml", "made"}


def test_a_checkpoint_of_other_make_is_left_alone(tmp_path: Path) -> None:
    file, folder = tmp_path / "fleet.yaml", tmp_path / "theirs"
    file.write_text(FLEET)
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "README.md").write_text("theirs")
    report = report_of(score_of("bf16", 1.0, 269), score_of("theirs", 0.9, 163, method="int8"))
    assert len(register(report, file, {"theirs": folder})) == 1
    assert FleetConfig.load(file).variants["theirs"].quality == 0.9
    assert (folder / "README.md").read_text() == "theirs"
