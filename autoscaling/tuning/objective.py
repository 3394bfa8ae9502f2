"""What a fleet is tuned for, from a text such as `cost subject to attainment>=0.99`; it runs nothing.

text       := goal [ "subject to" condition { "and" condition } ]
goal       := "cost" | "gpu_hours" | "goodput_per_gpu_hour"
condition  := figure ( ">=" | "<=" ) number

Cost and GPU-hours are minimised and need a condition on attainment: the cheapest fleet of all answers nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Literal, NoReturn

from cluster.errors import UserError

Sign = Literal[">=", "<="]
BOUNDED: Mapping[str, Sign] = {
    "attainment": ">=",
    "goodput_per_gpu_hour": ">=",
    "cost": "<=",
    "gpu_hours": "<=",
}
"""Figures that a condition may name, and the side on which they are good."""
MINIMISED = ("cost", "gpu_hours")
MAXIMISED = ("goodput_per_gpu_hour",)
EXAMPLE = "cost subject to attainment>=0.99"
_CONDITION = re.compile(r"(\w+)\s*(>=|<=)\s*(\S+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """Of a simulated run."""

    attainment: float
    """Of the class with the lowest, over offered requests."""
    gpu_hours: float
    cost: float
    """Dollars."""
    goodput_per_gpu_hour: float
    """Requests that met every limit."""

    def named(self, name: str) -> float:
        return float(getattr(self, name))


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    figure: str
    bound: float
    """Above 0."""

    def __str__(self) -> str:
        return f"{self.figure}{BOUNDED[self.figure]}{self.bound:g}"

    def broken_by(self, figures: Figures) -> float:
        """In parts of the bound, so that conditions on different figures add up; 0: kept."""
        value = figures.named(self.figure)
        beyond = self.bound - value if BOUNDED[self.figure] == ">=" else value - self.bound
        return max(0.0, beyond / self.bound)


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    goal: str
    conditions: tuple[Condition, ...] = ()

    def __str__(self) -> str:
        conditions = " and ".join(map(str, self.conditions))
        return f"{self.goal} subject to {conditions}" if conditions else self.goal

    def broken_by(self, figures: Figures) -> float:
        return sum(condition.broken_by(figures) for condition in self.conditions)

    def value(self, figures: Figures) -> float:
        """To be minimised: above 0 by how much the conditions are broken, and below 0, or 0, where all are kept.

        So any run that keeps them is better than any that does not. TPE looks at nothing but the order of values
        (Bergstra et al. 2011), so this loses nothing beside a separate model of the conditions.
        """
        broken = self.broken_by(figures)
        if broken:
            return broken
        figure = figures.named(self.goal)
        return -figure if self.goal in MAXIMISED else -1 / (1 + figure)


def parse_objective(text: str) -> Objective:
    """UserError, naming all that is known, for what is no objective."""
    words = " ".join(text.split())
    goal, has_conditions, rest = (part.strip() for part in words.partition("subject to"))
    if goal not in (*MINIMISED, *MAXIMISED):
        _refuse(f"no goal {goal!r}")
    parts = re.split(r"\s+and\s+", rest) if has_conditions else []
    conditions = tuple(_condition(part) for part in parts)
    named = [each.figure for each in conditions]
    for figure in named:
        if named.count(figure) > 1:
            _refuse(f"{figure} has two bounds")
    if goal in named:
        _refuse(f"{goal} is both the goal and bounded")
    if goal in MINIMISED and "attainment" not in named:
        _refuse(f"{goal} is least where nothing is answered, so attainment needs a bound")
    return Objective(goal=goal, conditions=conditions)


def _condition(text: str) -> Condition:
    match = _CONDITION.fullmatch(text)
    if match is None:
        _refuse(f"no condition {text!r}")
    figure, sign, number = match.groups()
    if figure not in BOUNDED:
        _refuse(f"no figure {figure!r}")
    if sign != BOUNDED[figure]:
        _refuse(f"{text!r} is bounded on its good side, write {figure}{BOUNDED[figure]}{number}")
    try:
        bound = float(number)
    except ValueError:
        _refuse(f"{number!r} in {text!r} is no number")
    if not (isfinite(bound) and bound > 0):
        _refuse(f"{text!r} has no bound above 0")
    if figure == "attainment" and bound > 1:
        _refuse(f"{text!r} is above 1, attainment is a share")
    return Condition(figure=figure, bound=bound)


def _refuse(problem: str) -> NoReturn:
    conditions = ", ".join(f"{figure}{sign}X" for figure, sign in BOUNDED.items())
    raise UserError(
        f"--objective: {problem}; goals: {', '.join((*MINIMISED, *MAXIMISED))}; conditions, after `subject to` and"
        f" joined by `and`: {conditions}; for example {EXAMPLE!r}"
    )
