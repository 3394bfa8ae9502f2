"""Pictures of the experiments, as PNG; it computes no figure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from batch_jobs.bench.int8_threshold import ThresholdScore

BLUE, ORANGE, GREY = "#1f6feb", "#d1652b", "#8b949e"
DPI = 150


def draw_thresholds(scores: Sequence[ThresholdScore], reference: float, path: Path) -> None:
    """Loss of perplexity, and what is kept in 16 bits, over the threshold."""
    finite = [score for score in scores if not math.isinf(score.threshold)]
    thresholds = [score.threshold for score in finite]
    figure = Figure(figsize=(7, 4), layout="constrained")
    loss = figure.add_subplot()
    for label, colour, values in (
        ("each row's own outliers apart", BLUE, [score.perplexity_by_row for score in finite]),
        ("columns apart for all rows", ORANGE, [score.perplexity_by_column for score in finite]),
    ):
        loss.plot(thresholds, [100 * (value / reference - 1) for value in values], "o-", color=colour, label=label)
    loss.set(xlabel="threshold", ylabel="perplexity above the unquantised model's, %")
    loss.set_ylim(bottom=0)
    kept = loss.twinx()
    kept.plot(thresholds, [100 * score.columns_kept for score in finite], "s:", color=GREY, label="columns in 16 bits")
    kept.set_ylabel("columns kept in 16 bits, %", color=GREY)
    kept.set_ylim(bottom=0)
    loss.legend(handles=[*loss.lines, *kept.lines], frameon=False, loc="upper center")
    loss.spines["top"].set_visible(False)
    kept.spines["top"].set_visible(False)
    _save(figure, path)


def draw_salient(scores: dict[str, float], reference: float, path: Path) -> None:
    """A bar for each treatment, the unquantised model as a line."""
    names = [*scores][::-1]
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    colours = [BLUE if "kept" in name else ORANGE if "times" in name else GREY for name in names]
    bars = axes.barh(names, [scores[name] for name in names], color=colours)
    axes.bar_label(bars, fmt=" %.1f")
    axes.axvline(reference, color="black", linewidth=1, linestyle="--")
    axes.text(reference, len(names) - 0.4, " unquantised", va="bottom", ha="left", fontsize=8)
    axes.set(xlabel="perplexity")
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.12)
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    FigureCanvasAgg(figure)
    figure.savefig(path, dpi=DPI)
