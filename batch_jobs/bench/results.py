"""The experiments' figures as tables, JSON and pictures; it runs none of them."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from batch_jobs.bench.experiments import Scale
from batch_jobs.bench.int8_threshold import ThresholdScore


@dataclass(frozen=True, slots=True, kw_only=True)
class Results:
    """What was run; a part that was not is None."""

    scale: Scale
    types: dict[str, float] | None = None
    int8: list[ThresholdScore] | None = None
    salient: dict[str, float] | None = None


def print_results(results: Results, console: Console) -> None:
    scale = results.scale
    console.print(
        f"{scale.model} on {scale.num_tokens} tokens of {scale.text}, windows of {scale.context}:"
        f" perplexity {scale.reference:.4f} unquantised"
    )
    if results.types is not None:
        console.print(_table("4-bit data types, blocks of 64", "type", results.types, scale.reference))
    if results.int8 is not None:
        console.print(_threshold_table(results.int8, scale.reference))
    if results.salient is not None:
        console.print(_table("int3 in groups of 64", "the salient channels", results.salient, scale.reference))


def write_results(results: Results, folder: Path) -> None:
    """experiments.json, and a picture of each part that has one."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "experiments.json").write_text(json.dumps(_plain(asdict(results)), indent=1) + "\n", encoding="utf-8")
    from batch_jobs.bench import pictures  # matplotlib takes a second to import

    if results.int8 is not None:
        pictures.draw_thresholds(results.int8, results.scale.reference, folder / "int8-threshold.png")
    if results.salient is not None:
        pictures.draw_salient(results.salient, results.scale.reference, folder / "salient-channels.png")


def _table(title: str, first: str, scores: dict[str, float], reference: float) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column(first)
    for heading in ("perplexity", "loss"):
        table.add_column(heading, justify="right")
    for name, perplexity in scores.items():
        table.add_row(name, f"{perplexity:.4f}", _loss(perplexity, reference))
    return table


def _threshold_table(scores: list[ThresholdScore], reference: float) -> Table:
    table = Table(title="LLM.int8(): the outlier threshold", title_justify="left")
    for heading in ("threshold", "a row's own outliers apart", "loss", "columns apart", "loss", "values", "columns"):
        table.add_column(heading, justify="right")
    for score in scores:
        table.add_row(
            "none" if math.isinf(score.threshold) else f"{score.threshold:g}",
            f"{score.perplexity_by_row:.4f}",
            _loss(score.perplexity_by_row, reference),
            f"{score.perplexity_by_column:.4f}",
            _loss(score.perplexity_by_column, reference),
            f"{score.values_kept:.3%}",
            f"{score.columns_kept:.2%}",
        )
    return table


def _loss(perplexity: float, reference: float) -> str:
    return f"{perplexity / reference - 1:+.2%}"


def _plain(value: Any) -> Any:
    """JSON has no infinity."""
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return None if isinstance(value, float) and math.isinf(value) else value
