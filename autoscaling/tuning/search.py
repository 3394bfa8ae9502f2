"""The search for the best settings by Optuna's TPE, the default settings first; what a trial does it is told.

A Tree-structured Parzen Estimator (Bergstra et al. 2011) draws the next settings where good trials lie denser than
the others. One process and one seed: the same arguments give the same trials.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from autoscaling.tuning.objective import Figures, Objective
from autoscaling.tuning.search_space import Range, Settings, ranges_around

FEWEST_AT_RANDOM = 4
"""Trials before TPE has something to go by; a quarter of them where that is more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    number: int
    """0: the default settings."""
    settings: Settings
    figures: Figures


def search(
    evaluate: Callable[[Settings], Figures],
    objective: Objective,
    default: Settings,
    *,
    trials: int,
    seed: int,
    on_trial: Callable[[Trial], None] | None = None,
) -> list[Trial]:
    """All trials, in the order in which they ran."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=max(FEWEST_AT_RANDOM, trials // 4))
    study = optuna.create_study(sampler=sampler)
    study.enqueue_trial(dict(default))
    ranges = ranges_around(default)
    distributions: dict[str, optuna.distributions.BaseDistribution] = {
        key: optuna.distributions.FloatDistribution(each.low, each.high, log=each.is_time)
        for key, each in ranges.items()
    }
    done: list[Trial] = []
    for number in range(trials):
        asked = study.ask(distributions)
        settings = _rounded(asked.params, ranges) if number else default
        trial = Trial(number=number, settings=settings, figures=evaluate(settings))
        study.tell(asked, objective.value(trial.figures))
        done.append(trial)
        if on_trial is not None:
            on_trial(trial)
    return done


def best_first(trials: Sequence[Trial], objective: Objective) -> list[Trial]:
    """Of equals the earlier, so that the default stays where nothing is gained."""
    return sorted(trials, key=lambda trial: (objective.value(trial.figures), trial.number))


def _rounded(drawn: Mapping[str, float], ranges: Mapping[str, Range]) -> Settings:
    return {key: each.rounded(drawn[key]) for key, each in ranges.items()}
