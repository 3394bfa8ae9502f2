"""Names beside the points of a plot, where they hide neither each other nor a point; it knows no data."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.text import Annotation
    from matplotlib.transforms import Bbox

DISTANCES = (6.0, 14.0, 24.0, 36.0, 50.0)
"""Points of the page from a marker to its label: the first place that is free is taken."""

SIDES = ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (1, -1), (-1, 1), (-1, -1))
HORIZONTAL = {1: "left", 0: "center", -1: "right"}
VERTICAL = {1: "bottom", 0: "center", -1: "top"}
FAR = 14.0
"""From here on a thin line says whose label it is."""

MARKER_PIXELS = 5.0


def place_labels(plot: Axes, places: Sequence[tuple[float, float]], names: Sequence[str]) -> None:
    """Annotates each place, in data coordinates, once the figure's layout is known (draw_without_rendering)."""
    from matplotlib.transforms import Bbox

    pixels = plot.transData.transform(list(places))
    size = 2 * MARKER_PIXELS
    taken = [Bbox.from_bounds(x - MARKER_PIXELS, y - MARKER_PIXELS, size, size) for x, y in pixels]
    legend = plot.get_legend()
    if legend is not None:
        taken.append(legend.get_window_extent())
    for place, name in zip(places, names, strict=True):
        taken.append(_place(plot, place, name, taken))


def _place(plot: Axes, place: tuple[float, float], name: str, taken: Sequence[Bbox]) -> Bbox:
    """The box that the label takes; where no place is free, the first one all the same."""
    inside = plot.get_window_extent()
    for distance, side in product(DISTANCES, SIDES):
        label = _annotate(plot, place, name, distance, side)
        box = _text_box(label)
        if _holds(inside, box) and not any(box.overlaps(other) for other in taken):
            return box
        label.remove()
    return _text_box(_annotate(plot, place, name, DISTANCES[0], SIDES[0]))


def _annotate(plot: Axes, place: tuple[float, float], name: str, distance: float, side: tuple[int, int]) -> Annotation:
    right, up = side
    return plot.annotate(
        name,
        place,
        xytext=(right * distance, up * distance),
        textcoords="offset points",
        ha=HORIZONTAL[right],
        va=VERTICAL[up],
        fontsize=9,
        bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.6},  # a line behind stays behind
        zorder=2.5,
        arrowprops={"arrowstyle": "-", "color": "0.6", "linewidth": 0.6} if distance >= FAR else None,
    )


def _text_box(label: Annotation) -> Bbox:
    """Without the line to its point, which an annotation's own extent takes in."""
    from matplotlib.text import Text

    label.get_window_extent()  # brings the text to its place
    return Text.get_window_extent(label)


def _holds(outer: Bbox, inner: Bbox) -> bool:
    return bool(outer.x0 <= inner.x0 and inner.x1 <= outer.x1 and outer.y0 <= inner.y0 and inner.y1 <= outer.y1)
