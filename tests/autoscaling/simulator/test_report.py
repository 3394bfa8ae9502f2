"""Summary and report of a run: figures that come back from the file, and a page that needs nothing else."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from autoscaling.fleet_plan import FleetTerms
from autoscaling.simulator.charts import round_top
from autoscaling.simulator.report import html_report
from autoscaling.simulator.summary import RunSummary, read_summary, summarised, write_summary
from cluster.errors import UserError
from tests.autoscaling.simulator.test_fleet import LABEL, Schedule, run, traffic


@pytest.fixture(scope="module")
def summary(fleet: FleetTerms) -> RunSummary:
    policy = Schedule((0.0, {"bf16": 1, "int4": 1}), (20.0, {"bf16": 2, "int4": 0}))
    return summarised(run(fleet, policy, {"bf16": 1, "int4": 1}, traffic("poisson:rate=6,duration_s=60")), LABEL)


def test_it_comes_back_from_its_file(summary: RunSummary, tmp_path: Path) -> None:
    write_summary(summary, tmp_path)
    assert read_summary(tmp_path) == summary
    assert [path.name for path in tmp_path.iterdir()] == ["summary.json"]


def test_the_figures_add_up(summary: RunSummary) -> None:
    assert summary.offered == sum(each.offered for each in summary.classes.values())
    assert sum(summary.arrivals) * summary.arrivals_bin_s == pytest.approx(summary.offered)
    assert summary.goodput_per_gpu_hour == pytest.approx(summary.met / summary.gpu_hours)
    assert summary.gpu_hours == pytest.approx(sum(each.gpu_hours for each in summary.variants.values()))
    assert summary.lowest_attainment == min(each.attainment for each in summary.classes.values())


def test_a_page_that_fetches_nothing(summary: RunSummary) -> None:
    other = replace(summary, name="<other> & more", policy="fixed")
    page = html_report([summary, other])
    assert not re.search(r"(src|href)=|@import|url\(", page)
    assert "<script" not in page
    assert "&lt;other&gt; &amp; more" in page
    assert "<other>" not in page
    for words in ("interactive", "throughput", "GPU-hours", "TTFT p50 / p99, ms", "Replicas over time", "int4"):
        assert words in page
    assert page.count("<svg") == 3, "replicas of each run, arrivals once: they are the same"


@pytest.mark.parametrize(("text", "words"), [("{}", "not the summary of a run"), (None, "cannot be read")])
def test_a_folder_without_a_run(tmp_path: Path, text: str | None, words: str) -> None:
    if text is not None:
        (tmp_path / "summary.json").write_text(text)
    with pytest.raises(UserError, match=words):
        read_summary(tmp_path)


def test_axes_end_at_figures_that_read_well() -> None:
    assert [round_top(value) for value in (0, 0.7, 3, 17, 100, 101)] == [1.0, 0.8, 4.0, 20.0, 100.0, 200.0]
