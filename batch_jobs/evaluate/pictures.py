"""Quality against bytes and against speed, the Pareto front drawn: pictures of a report; it measures nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from batch_jobs.disk import write_whole
from batch_jobs.evaluate.label_places import place_labels
from batch_jobs.evaluate.report import EvaluateReport, VariantScore

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDEST_LINEAR_PERCENT = 30.0
"""Past it one bad variant would press the good ones together: linear to 1 % then, and logarithmic beyond."""

Measure = Callable[[VariantScore], float | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """What quality is drawn against."""

    label: str
    value: Measure
    more_is_better: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    name: str
    x: float
    loss_percent: float
    """Of perplexity, above the reference's; below 0 where a variant happens to be better."""


IN_MEMORY = Axis(label="weights in memory, MB", value=lambda score: score.weight_bytes / 1e6, more_is_better=False)
READ = Axis(label="weights read by a decode step, MB", value=lambda s: s.read_bytes / 1e6, more_is_better=False)
SPEED = (
    Axis(label="tokens/s, batch 1", value=lambda score: score.tokens_per_s_batch_1, more_is_better=True),
    Axis(label="tokens/s, B_best", value=lambda score: score.tokens_per_s_best_batch, more_is_better=True),
)


def draw_pictures(report: EvaluateReport, path: Path) -> list[Path]:
    """Beside `path` (X.json): X-quality-bytes.png and, where speed was measured, X-quality-speed.png."""
    # A tied embedding is read as the head at every step: nothing is resident that is not read.
    is_all_read = all(score.read_bytes == score.weight_bytes for score in report.variants)
    pictures = {"quality-bytes": [IN_MEMORY] if is_all_read else [IN_MEMORY, READ], "quality-speed": list(SPEED)}
    written: list[Path] = []
    for name, axes in pictures.items():
        if all(axis.value(score) is not None for axis in axes for score in report.variants):
            written.append(path.with_name(f"{path.stem}-{name}.png"))
            _draw(report, axes, written[-1])
    return written


def points(report: EvaluateReport, axis: Axis) -> list[Point]:
    return [
        Point(name=score.name, x=x, loss_percent=100 * (1 / score.quality - 1))
        for score in report.variants
        if (x := axis.value(score)) is not None
    ]


def pareto_front(found: Sequence[Point], more_is_better: bool) -> list[Point]:
    """Those that no other one beats in one way and equals at least in the other, in order of x."""
    sign = 1 if more_is_better else -1

    def beaten(point: Point) -> bool:
        return any(
            sign * other.x >= sign * point.x
            and other.loss_percent <= point.loss_percent
            and (other.x, other.loss_percent) != (point.x, point.loss_percent)
            for other in found
        )

    return sorted((point for point in found if not beaten(point)), key=lambda point: point.x)


def _draw(report: EvaluateReport, axes: Sequence[Axis], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    width = 7.2 if len(axes) == 1 else 5.4 * len(axes)
    figure, grid = pyplot.subplots(1, len(axes), figsize=(width, 4.4), sharey=True, squeeze=False, layout="constrained")
    plots = list(grid[0])
    for plot, axis in zip(plots, axes, strict=True):
        _draw_points(plot, points(report, axis), axis)
    text = report.text
    plots[0].set_ylabel(f"perplexity above {report.reference}, %")
    figure.suptitle(
        f"{report.model}: {text.scored_tokens} tokens of {text.name}, windows of {text.context}; "
        f"{report.machine.accelerator}",
        fontsize=10,
    )
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # the names are placed on what stands now
    for plot, axis in zip(plots, axes, strict=True):
        found = points(report, axis)
        place_labels(plot, [(point.x, point.loss_percent) for point in found], [point.name for point in found])
    picture = BytesIO()
    figure.savefig(picture, dpi=130, format="png")
    pyplot.close(figure)
    write_whole(path, picture.getvalue())


def _draw_points(plot: Axes, found: Sequence[Point], axis: Axis) -> None:
    front = pareto_front(found, axis.more_is_better)
    plot.step(
        [point.x for point in front],
        [point.loss_percent for point in front],
        where="pre" if axis.more_is_better else "post",  # the corner is what can be had without the better of the two
        color="tab:green",
        linewidth=1.2,
        label="Pareto front",
    )
    for group, color in ((front, "tab:green"), ([point for point in found if point not in front], "tab:gray")):
        plot.scatter([p.x for p in group], [p.loss_percent for p in group], s=36, color=color, zorder=3)
    if max(point.loss_percent for point in found) > WIDEST_LINEAR_PERCENT:
        plot.set_yscale("symlog", linthresh=1.0)
        plot.yaxis.set_major_formatter("{x:g}")
    plot.margins(x=0.2, y=0.12)
    plot.set_xlabel(axis.label)
    plot.grid(visible=True, alpha=0.3)
    plot.legend(loc="upper left" if axis.more_is_better else "upper right", fontsize=8)
