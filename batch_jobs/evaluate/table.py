"""An evaluation on the console: one row a variant; it measures and writes nothing."""

from __future__ import annotations

from collections.abc import Callable

from rich import box
from rich.table import Table

from batch_jobs.evaluate.report import EvaluateReport, VariantScore

HASH_DIGITS = 12
WORTH_A_WARNING = 0.1
"""Of all cores, taken by others: speeds are wrong by about as much."""

Cell = Callable[[VariantScore], str]

QUALITY: dict[str, Cell] = {
    "\nperplexity": lambda score: f"{score.perplexity:.4f}",
    "\nquality": lambda score: f"{score.quality:.4f}",
    "\nKL": lambda score: f"{score.kl:.4f}",
    "\ntop-1": lambda score: f"{score.top1_agreement:.1%}",
    "\nanswers": lambda score: f"{score.greedy_agreement:.0%}/{score.greedy_leading_agreement:.0%}",
    "\nMB": lambda score: f"{score.weight_bytes / 1e6:.1f}",
}
READ: dict[str, Cell] = {"MB\nread": lambda score: f"{score.read_bytes / 1e6:.1f}"}
SPEED: dict[str, Cell] = {
    "tok/s\nB=1": lambda score: f"{score.tokens_per_s_batch_1:.1f}",
    "tok/s\n(B_best)": lambda score: f"{score.tokens_per_s_best_batch:.0f} ({score.best_batch})",
}


def scores_table(report: EvaluateReport) -> Table:
    """As narrow as 80 columns; the bytes read by a step where they are not those in memory."""
    text = report.text
    kind = "disjoint" if text.stride == text.context else f"a new one every {text.stride} tokens"
    table = Table(
        title=f"{report.model}: {text.scored_tokens} tokens of {text.name}, windows of {text.context}, {kind}",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=0,
    )
    columns = dict(QUALITY)
    if any(score.read_bytes != score.weight_bytes for score in report.variants):
        columns |= READ
    if all(score.tokens_per_s_batch_1 is not None for score in report.variants):
        columns |= SPEED
    table.add_column("\nvariant", overflow="fold")
    for heading in columns:
        table.add_column(heading, justify="right", no_wrap=True)
    for score in report.variants:
        table.add_row(score.name, *(cell(score) for cell in columns.values()))
    return table


def provenance(report: EvaluateReport) -> str:
    """What the columns mean, of which texts, on which machine: the lines under the table."""
    text, machine, prompts = report.text, report.machine, report.prompts
    lines = [
        f"KL({report.reference} || variant): nats a token; answers to {prompts.prompts} prompts:"
        f" equal in all {prompts.answer_tokens} tokens / share of tokens before the first that differs",
        f"text: {text.name}, sha256 {text.sha256[:HASH_DIGITS]}..., its first {text.characters} characters",
        f"prompts: {prompts.name}, sha256 {prompts.sha256[:HASH_DIGITS]}...",
    ]
    lines += [
        f"calibration of {score.name}: {score.calibration.name}, sha256 {score.calibration.sha256[:HASH_DIGITS]}...,"
        " no paragraph shared"
        for score in report.variants
        if score.calibration is not None
    ]
    if machine.busy_share is not None and machine.busy_share > WORTH_A_WARNING:
        lines.append(f"other processes took {machine.busy_share:.0%} of the machine: speeds are too low")
    versions = ", ".join(f"{name} {number}" for name, number in report.versions.items())
    return "\n".join([*lines, f"{machine.accelerator}, {machine.threads} threads; {versions}; {report.seconds:.0f} s"])
