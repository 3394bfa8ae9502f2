"""An outcome: which trials are judged on the other half, what is said of them, and the evidence."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from rich.console import Console

from autoscaling.simulator.arrivals import TracedRequest
from autoscaling.tuning.objective import Figures, parse_objective
from autoscaling.tuning.outcome import BEST, Outcome, Source, evidence, judged, sha256_of, standing, verdict
from autoscaling.tuning.outcome_table import outcome_table
from autoscaling.tuning.search import Trial
from autoscaling.tuning.search_space import Settings, settings_of
from cluster.config import AutoscalingSection

OBJECTIVE = parse_objective("cost subject to attainment>=0.9")
DEFAULT = settings_of(AutoscalingSection())
SOURCE = Source(
    name="trace\nof\x07all[bold].csv",
    sha256="0" * 64,
    num_requests=100,
    rate=2.0,
    classes="standard=1",
    warm_up_s=30.0,
    half_s=300.0,
    model="llama",
    accelerator="H100-80G",
    step_times="step times by the roofline",
    seed=4,
)


def figures(cost: float, attainment: float = 1.0) -> Figures:
    return Figures(attainment=attainment, gpu_hours=cost / 3, cost=cost, goodput_per_gpu_hour=100 / cost)


def outcome(*costs: float, held_out_attainment: float = 1.0) -> Outcome:
    trials = [
        Trial(number=number, settings={**DEFAULT, "hold_s": DEFAULT["hold_s"] + number}, figures=figures(cost))
        for number, cost in enumerate(costs)
    ]

    def held_out(settings: Settings) -> Figures:
        place = int(settings["hold_s"] - DEFAULT["hold_s"])
        return figures(costs[place] + 1, held_out_attainment)

    return judged(trials, OBJECTIVE, SOURCE, held_out)


def test_the_default_and_the_best_five_are_judged_on_both_halves() -> None:
    found = outcome(9, 8, 2, 7, 3, 6, 4, 5)
    assert [each.trial.number for each in found.best] == [2, 4, 6, 7, 5, 0]
    assert len(found.best) == BEST + 1
    assert found.default is found.best[-1]
    assert [each.held_out.cost for each in found.best] == [3, 4, 5, 6, 7, 10]
    assert [each.trial.number for each in outcome(4, 8, 2).best] == [2, 0, 1]


def test_in_words() -> None:
    first, second = verdict(outcome(8, 2, held_out_attainment=0.8))
    assert first == "trial 1 against the default, first half: cost 2, was 8 (-75.0%)"
    assert second.startswith("second half, which the search did not see: cost 3, was 9 (-66.7%)")
    assert second.endswith("breaks attainment>=0.9; the default breaks attainment>=0.9")
    assert list(verdict(outcome(2, 8))) == ["none of 2 trials is better than the default settings on the first half"]
    assert standing(figures(1, 0.9), OBJECTIVE) == "kept"


@pytest.mark.parametrize("costs", [(8.0, 2.0), (2.0, 8.0)])
def test_evidence_is_comments_of_one_line(costs: tuple[float, ...]) -> None:
    lines = list(evidence(outcome(*costs)))
    assert all(line.startswith("# ") and line.isprintable() for line in lines)
    text = "\n".join(lines)
    for words in ("cost subject to attainment>=0.9", "0" * 64, "100 requests", "seed 4", "headroom 0.15", "$2.0000"):
        assert words in text
    assert len([line for line in lines if "second half: " in line]) == (2 if costs[0] > costs[1] else 1)


def test_the_table_has_the_default_once_and_both_halves() -> None:
    console = Console(width=150, record=True)
    console.print(outcome_table(outcome(2, 8, 4)))
    text = console.export_text()
    assert text.count("default") == 1
    assert text.count("second") == 3
    assert text.index("trial 2") < text.index("trial 1")
    assert "hold_s 182" in text
    assert "[bold]" in text


def test_sha256_is_of_the_file_or_of_what_was_made_up(tmp_path: Path) -> None:
    (tmp_path / "trace.csv").write_bytes(b"a trace")
    assert sha256_of(tmp_path / "trace.csv", []) == hashlib.sha256(b"a trace").hexdigest()
    assert sha256_of(None, [TracedRequest(0.5, 3, 4)]) == hashlib.sha256(b"0.5,3,4\n").hexdigest()
