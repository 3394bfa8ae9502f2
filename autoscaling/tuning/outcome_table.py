"""An outcome as a table for a terminal; it computes no figure of its own."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

from autoscaling.tuning.objective import Figures
from autoscaling.tuning.outcome import Judged, Outcome, standing
from autoscaling.tuning.search_space import differing


def outcome_table(outcome: Outcome) -> Table:
    """The default and the best, in each row a line for each half."""
    source = outcome.source
    # A Text: brackets in a file's name are no markup.
    table = Table(title=Text(f"{outcome.objective}: {source.model} on {source.accelerator}, {source.name}"))
    table.add_column("run")
    table.add_column("settings that differ", max_width=48)
    table.add_column("half")
    for column in ("worst class", "GPU-hours", "cost", "goodput by GPU-hour"):
        table.add_column(column, justify="right")
    table.add_column("conditions")
    for each in (outcome.default, *(one for one in outcome.best if one is not outcome.default)):
        halves = zip(_cells(each.trial.figures, outcome), _cells(each.held_out, outcome), strict=True)
        table.add_row(each.name, _settings(each, outcome), "first\nsecond", *map("\n".join, halves))
        table.add_section()
    return table


def _settings(each: Judged, outcome: Outcome) -> str:
    changed = differing(each.trial.settings, outcome.default.trial.settings)
    return ", ".join(f"{key} {value:g}" for key, value in changed.items())


def _cells(figures: Figures, outcome: Outcome) -> tuple[str, ...]:
    return (
        f"{figures.attainment:.2%}",
        f"{figures.gpu_hours:,.3f}",
        f"${figures.cost:,.2f}",
        f"{figures.goodput_per_gpu_hour:,.0f}",
        standing(figures, outcome.objective),
    )
