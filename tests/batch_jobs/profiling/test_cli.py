"""The command on this machine's real engine: measured, written, read again, checked."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cluster.errors import UserError
from cluster.profile import read_profiles, save_profiles
from quantfleet import app

FLEET = """
model: {source: "embedded:smollm2-135m"}
engine: {max_context: 100, token_budget: 40, max_sequences: 3, num_threads: 1}
variants: {int8: {method: int8, quality: 0.98}}
"""


@pytest.mark.slow
def test_measured_written_and_checked(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUANTFLEET_CACHE", str(checkpoint.parents[1]))
    (tmp_path / "fleet.yaml").write_text(FLEET)
    command = ["profile", str(tmp_path / "fleet.yaml"), "-o", str(tmp_path / "p.json"), "--check"]
    first = CliRunner().invoke(app, command)
    assert first.exit_code == 0, first.output
    assert "Errors on held-out steps" in first.output
    (measured,) = read_profiles(tmp_path / "p.json")
    assert all(0.0001 < point.step_s < 10 for point in measured.points)
    written = (tmp_path / "p.json").stat().st_mtime_ns
    again = CliRunner().invoke(app, [*command[:-1], "--plot", str(tmp_path / "p.png")])
    assert again.exit_code == 0, again.output
    assert (tmp_path / "p.png").exists()
    assert (tmp_path / "p.json").stat().st_mtime_ns == written
    save_profiles(tmp_path / "both.json", [measured, measured])
    assert read_profiles(tmp_path / "both.json") == [measured, measured]


def test_a_file_that_holds_no_profiles_is_named(tmp_path: Path) -> None:
    (tmp_path / "odd.json").write_text(json.dumps({"profiles": [{"format": 1}]}))
    with pytest.raises(UserError, match=r"odd.json: no profiles: not a whole profile"):
        read_profiles(tmp_path / "odd.json")
    with pytest.raises(UserError, match=r"none.json: cannot be read: No such file"):
        read_profiles(tmp_path / "none.json")
