"""A report as JSON, on the console, and where it may be written."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from batch_jobs.disk import write_whole
from batch_jobs.evaluate.report import EvaluateReport, check_output, report_path
from batch_jobs.evaluate.table import provenance, scores_table
from cluster.errors import UserError
from tests.batch_jobs.evaluate.reports import NOTE, report_of, score_of

REPORT = report_of(
    score_of("bf16", 1.0, 269.1, 40.0),
    score_of("gptq", 0.93, 112.3, 61.5, method="gptq", source="/made/gptq", calibration=NOTE),
)


def test_json_holds_every_figure() -> None:
    said = json.loads(REPORT.to_json())
    gptq = said["variants"][1]
    assert gptq["name"] == "gptq"
    assert gptq["calibration"] == {"name": "corpus.txt", "sha256": "ef" * 32}
    assert (gptq["tokens_per_s_best_batch"], gptq["best_batch"], gptq["weight_bytes"]) == (246.0, 16, 112_300_000)
    assert said["text"]["sha256"] == "ab" * 32
    assert {"torch", "quantfleet", "python"} <= set(said["versions"])
    with pytest.raises(ValueError, match="Out of range"):
        report_of(score_of("bf16", 1.0, 1, kl=float("nan"))).to_json()


def shown(report: EvaluateReport) -> list[str]:
    console = Console(file=io.StringIO(), width=80)
    console.print(scores_table(report))
    return console.file.getvalue().splitlines()


def test_the_table_shows_the_figures_in_80_columns() -> None:
    row = next(line for line in shown(REPORT) if "gptq" in line)
    for figure in ("21.5054", "0.9300", "0.0100", "95.0%", "50%/75%", "112.3", "61.5", "246 (16)"):
        assert figure in row
    assert not any("read" in line for line in shown(REPORT))


def test_columns_that_say_nothing_are_left_out() -> None:
    lines = shown(report_of(score_of("bf16", 1.0, 269.1), score_of("nf4", 0.8, 113.0, read_bytes=80_000_000)))
    assert not any("tok/s" in line for line in lines)
    assert any("read" in line for line in lines)
    assert "80.0" in next(line for line in lines if "nf4" in line)


def test_whose_texts_they_were_is_told() -> None:
    assert "text.txt, sha256 abababababab" in provenance(REPORT)
    assert "calibration of gptq: corpus.txt" in provenance(REPORT)


@pytest.mark.parametrize(("busy_share", "told"), [(None, False), (0.02, False), (0.5, True)])
def test_speeds_of_a_busy_machine_are_not_trusted(busy_share: float | None, told: bool) -> None:
    report = replace(REPORT, machine=replace(REPORT.machine, busy_share=busy_share))
    assert ("other processes took 50% of the machine" in provenance(report)) == told


def test_a_report_goes_to_a_file_or_a_folder(tmp_path: Path) -> None:
    assert report_path(Path("x/r.json")) == Path("x/r.json")
    assert report_path(Path("x/r")) == Path("x/r/report.json")
    check_output(tmp_path / "new" / "r.json")
    check_output(tmp_path / "new")
    (tmp_path / "dir.json").mkdir()
    (tmp_path / "file").write_text("")
    for wrong in ("dir.json", "file", "file/r.json"):
        with pytest.raises(UserError, match="is in the way"):
            check_output(tmp_path / wrong)
    with pytest.raises(UserError, match="/proc cannot be written"):
        check_output(Path("/proc/report.json"))


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    write_whole(tmp_path / "link", b"new")
    assert (tmp_path / "real").read_text() == "new"
    assert (tmp_path / "link").is_symlink()
    assert len(list(tmp_path.iterdir())) == 2
