"""The search on a made-up fleet whose best settings are known."""

from __future__ import annotations

from autoscaling.tuning.objective import Figures, Objective, parse_objective
from autoscaling.tuning.search import Trial, best_first, search
from autoscaling.tuning.search_space import RANGES, Settings, settings_of
from cluster.config import AutoscalingSection

DEFAULT = settings_of(AutoscalingSection(headroom=0.5, hold_s=1234.5))
OBJECTIVE = parse_objective("cost subject to attainment>=0.9")


def made_up(settings: Settings) -> Figures:
    """Headroom costs and serves: below 0.3 of it requests are missed."""
    return Figures(
        attainment=min(1.0, 0.6 + settings["headroom"]),
        gpu_hours=1 + settings["headroom"],
        cost=10 + 20 * settings["headroom"] + settings["hold_s"] / 600,
        goodput_per_gpu_hour=100.0,
    )


def run(trials: int, seed: int = 0, objective: Objective = OBJECTIVE) -> list[Trial]:
    return search(made_up, objective, DEFAULT, trials=trials, seed=seed)


def test_the_first_trial_is_the_default_to_the_last_digit() -> None:
    told: list[Trial] = []
    trials = search(made_up, OBJECTIVE, DEFAULT, trials=3, seed=0, on_trial=told.append)
    assert trials[0].settings == DEFAULT
    assert told == trials
    assert [trial.number for trial in trials] == [0, 1, 2]


def test_the_seed_decides() -> None:
    assert run(12) == run(12)
    assert run(12) != run(12, seed=1)


def test_all_trials_stay_within_the_ranges_and_are_rounded() -> None:
    for trial in run(20)[1:]:
        assert trial.settings.keys() == RANGES.keys()
        for key, value in trial.settings.items():
            assert RANGES[key].low <= value <= RANGES[key].high
            assert value == RANGES[key].rounded(value)


def test_it_finds_the_edge_that_the_condition_draws() -> None:
    trials = run(60)
    best = best_first(trials, OBJECTIVE)[0]
    assert OBJECTIVE.broken_by(best.figures) == 0
    assert 0.3 <= best.settings["headroom"] < 0.4
    assert best.figures.cost < trials[0].figures.cost
    at_random, late = ([abs(each.settings["headroom"] - 0.3) for each in part] for part in (trials[1:16], trials[-15:]))
    assert sum(late) < 0.5 * sum(at_random), "TPE has learnt where to look"


def test_of_equals_the_default_stays() -> None:
    goodput = parse_objective("goodput_per_gpu_hour")
    assert best_first(run(5, objective=goodput), goodput)[0].number == 0


def test_where_none_keeps_the_conditions_the_nearest_is_best() -> None:
    impossible = parse_objective("cost subject to attainment>=1 and gpu_hours<=1.1")
    trials = run(10, objective=impossible)
    best = best_first(trials, impossible)[0]
    assert 0 < impossible.broken_by(best.figures) == min(impossible.broken_by(each.figures) for each in trials)
