"""Summaries of simulated runs as tables for a terminal; it computes no figure of its own."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from autoscaling.simulator.summary import RunSummary


def summary_tables(runs: Sequence[RunSummary]) -> tuple[Table, Table]:
    """The runs, then their classes."""
    return _runs(runs), _classes(runs)


def _runs(runs: Sequence[RunSummary]) -> Table:
    first = runs[0]
    table = Table(title=f"{first.model} on {first.accelerator}: {first.traffic}, {first.offered:,} requests")
    table.add_column("run")
    table.add_column("policy")
    for column in ("attainment", "worst class", "GPU-hours", "cost", "goodput/s", "by GPU-hour", "refused", "too long"):
        table.add_column(column, justify="right")
    for run in runs:
        table.add_row(
            run.name,
            run.policy,
            f"{run.attainment:.2%}",
            f"{run.lowest_attainment:.2%}",
            f"{run.gpu_hours:,.2f}",
            f"${run.cost:,.2f}",
            f"{run.goodput_per_s:,.2f}",
            f"{run.goodput_per_gpu_hour:,.0f}",
            f"{run.refused:,}",
            f"{run.too_long:,}" + (f" (up to {run.longest_tokens:,} tokens)" if run.too_long else ""),
        )
    return table


def _classes(runs: Sequence[RunSummary]) -> Table:
    table = Table()
    table.add_column("run")
    table.add_column("class")
    for column in ("offered", "attainment", "refused", "below floor", "TTFT p50 / p99 ms", "TPOT p50 / p99 ms"):
        table.add_column(column, justify="right")
    table.add_column("answered by")
    for run in runs:
        for name, each in run.classes.items():
            table.add_row(
                run.name,
                name,
                f"{each.offered:,}",
                f"{each.attainment:.2%}",
                f"{each.refused:,}",
                f"{each.below_floor:,}",
                _pair(each.ttft_ms.p50, each.ttft_ms.p99),
                _pair(each.tpot_ms.p50, each.tpot_ms.p99),
                ", ".join(f"{variant} {count:,}" for variant, count in each.answered_by.items()),
            )
        table.add_section()
    return table


def _pair(p50: float | None, p99: float | None) -> str:
    return "none" if p50 is None or p99 is None else f"{p50:,.0f} / {p99:,.0f}"
