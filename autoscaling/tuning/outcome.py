"""What a search found, judged on both halves, and in words; it searches and prints nothing."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from autoscaling.simulator.arrivals import TracedRequest
from autoscaling.tuning.objective import Figures, Objective
from autoscaling.tuning.search import Trial, best_first
from autoscaling.tuning.search_space import Settings

BEST = 5
"""Trials that are reported beside the default."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """On what was tuned."""

    name: str
    """The trace's, or the specification of made-up traffic."""
    sha256: str
    num_requests: int
    rate: float
    classes: str
    warm_up_s: float
    half_s: float
    model: str
    accelerator: str
    step_times: str
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    trial: Trial
    held_out: Figures
    """On the half that the search did not see."""

    @property
    def name(self) -> str:
        return f"trial {self.trial.number}" if self.trial.number else "default"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    objective: Objective
    source: Source
    trials: int
    default: Judged
    best: tuple[Judged, ...]
    """The best first, the default where it belongs among them."""


def judged(
    trials: Sequence[Trial], objective: Objective, source: Source, held_out: Callable[[Settings], Figures]
) -> Outcome:
    chosen = best_first([trials[0], *best_first(trials[1:], objective)[:BEST]], objective)
    best = tuple(Judged(trial=trial, held_out=held_out(trial.settings)) for trial in chosen)
    default = next(each for each in best if each.trial is trials[0])
    return Outcome(objective=objective, source=source, trials=len(trials), default=default, best=best)


def verdict(outcome: Outcome) -> Iterator[str]:
    """What the search gained, on both halves."""
    best, default, objective = outcome.best[0], outcome.default, outcome.objective
    if best.trial.number == 0:
        yield f"none of {outcome.trials} trials is better than the default settings on the first half"
        return
    yield f"{best.name} against the default, first half: {_gain(best.trial.figures, default.trial.figures, objective)}"
    yield f"second half, which the search did not see: {_gain(best.held_out, default.held_out, objective)}"


def standing(figures: Figures, objective: Objective) -> str:
    broken = [condition for condition in objective.conditions if condition.broken_by(figures)]
    return "breaks " + " and ".join(map(str, broken)) if broken else "kept"


def evidence(outcome: Outcome) -> Iterator[str]:
    """As comments of a YAML file, one a line."""
    source, default = outcome.source, outcome.default.trial.settings
    yield _comment(f"objective: {outcome.objective}")
    yield _comment(f"trace: {source.name}, sha256 {source.sha256}, {source.num_requests} requests")
    yield _comment(
        f"traffic: at {source.rate:g} times its rate, classes {source.classes}, two halves of {source.half_s:.6g} s,"
        f" each after a warm-up of {source.warm_up_s:g} s"
    )
    yield _comment(f"simulated: {source.model} on {source.accelerator}, {source.step_times}")
    yield _comment(f"search: {outcome.trials} trials of TPE, seed {source.seed}; tuned on the first half")
    for each in (outcome.default, *(best for best in outcome.best[:1] if best is not outcome.default)):
        name = f"best, {each.name}" if each is outcome.best[0] else each.name
        yield _comment(f"{name}, first half: {_figures(each.trial.figures, outcome.objective)}")
        yield _comment(f"{name}, second half: {_figures(each.held_out, outcome.objective)}")
    yield _comment("default settings: " + ", ".join(f"{key} {value:g}" for key, value in default.items()))


def sha256_of(trace: Path | None, requests: Iterable[TracedRequest]) -> str:
    """Of the trace's bytes; of made-up requests as lines `seconds,prompt tokens,output tokens`."""
    if trace is not None:
        with trace.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    digest = hashlib.sha256()
    for each in requests:
        digest.update(f"{each.at_s!r},{each.prompt_tokens},{each.output_tokens}\n".encode())
    return digest.hexdigest()


def _gain(best: Figures, default: Figures, objective: Objective) -> str:
    goal = objective.goal
    now, before = best.named(goal), default.named(goal)
    change = f" ({now / before - 1:+.1%})" if before else ""
    words = f"{goal} {now:.6g}, was {before:.6g}{change}"
    for name, figures in (("", best), ("the default ", default)):
        if objective.broken_by(figures):
            words += f"; {name}{standing(figures, objective)}"
    return words


def _figures(figures: Figures, objective: Objective) -> str:
    return (
        f"attainment {figures.attainment:.4f}, {figures.gpu_hours:.4f} GPU-hours, ${figures.cost:.4f},"
        f" {figures.goodput_per_gpu_hour:.1f} good requests a GPU-hour; conditions {standing(figures, objective)}"
    )


def _comment(text: str) -> str:
    """Of one line, whatever a file's name has in it."""
    return "# " + "".join(each if each.isprintable() else " " for each in text)
