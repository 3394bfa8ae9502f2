"""Charts as inline SVG: replicas over time, arrivals, bars; it knows figures and pixels, no run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from math import ceil, floor, log10

WIDTH, HEIGHT = 560, 170
LEFT, RIGHT, TOP, BOTTOM = 44, 10, 10, 24
TICKS = 4


@dataclass(frozen=True, slots=True)
class Scale:
    """From seconds and values to pixels."""

    end_s: float
    top: float

    def x(self, at_s: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * at_s / self.end_s

    def y(self, value: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * value / self.top


def stacked_steps(
    times_s: Sequence[float], layers: Mapping[str, Sequence[float]], colours: Mapping[str, str], scale: Scale
) -> str:
    """Layers over one another, each constant from one time to the next."""
    lower = [0.0] * len(times_s)
    areas = []
    for name, values in layers.items():
        upper = [low + value for low, value in zip(lower, values, strict=True)]
        outline = [*_stairs(times_s, upper, scale), *reversed(_stairs(times_s, lower, scale))]
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in outline)
        title = f"<title>{escape(name)}</title>"
        areas.append(f'<polygon points="{points}" fill="{colours[name]}" fill-opacity=".85">{title}</polygon>')
        lower = upper
    return _framed("".join(areas), scale)


def bars_over_time(values: Sequence[float], bin_s: float, colour: str, scale: Scale) -> str:
    bars = []
    for index, value in enumerate(values):
        x, y = scale.x(index * bin_s), scale.y(value)
        width = max(0.6, scale.x(bin_s) - scale.x(0) - 0.3)
        height = HEIGHT - BOTTOM - y
        bars.append(f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.2f}" height="{height:.1f}" fill="{colour}"/>')
    return _framed("".join(bars), scale)


def bar(share: float, colour: str) -> str:
    """A horizontal bar of a share of its cell."""
    width = 100 * max(0.0, min(1.0, share))
    return f'<span class="bar"><span style="width:{width:.1f}%;background:{colour}"></span></span>'


def round_top(value: float) -> float:
    """The next figure that reads well."""
    if value <= 0:
        return 1.0
    step = 10.0 ** floor(log10(value))
    return next(step * factor for factor in (1, 2, 4, 5, 8, 10) if step * factor >= value * (1 - 1e-9))


def _stairs(times_s: Sequence[float], values: Sequence[float], scale: Scale) -> list[tuple[float, float]]:
    points = []
    ends_s = [*times_s[1:], scale.end_s]
    for start_s, end_s, value in zip(times_s, ends_s, values, strict=True):
        points += [(scale.x(start_s), scale.y(value)), (scale.x(end_s), scale.y(value))]
    return points


def _framed(inside: str, scale: Scale) -> str:
    lines = []
    for index in range(TICKS + 1):
        value = scale.top * index / TICKS
        y = scale.y(value)
        lines.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" class="grid"/>')
        lines.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{value:g}</text>')
    for at_s in _time_ticks(scale.end_s):
        lines.append(f'<text x="{scale.x(at_s):.1f}" y="{HEIGHT - 6}" text-anchor="middle">{_clock(at_s)}</text>')
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img">{"".join(lines)}{inside}</svg>'


def _time_ticks(end_s: float) -> list[float]:
    steps = (10, 30, 60, 300, 600, 1800, 3600, 7200, 14400, 43200, 86400)
    step = next((step for step in steps if end_s / step <= 8), ceil(end_s / 8 / 86400) * 86400)
    return [step * index for index in range(int(end_s / step) + 1)]


def _clock(at_s: float) -> str:
    hours, minutes, seconds = int(at_s) // 3600, int(at_s) % 3600 // 60, int(at_s) % 60
    if hours:
        return f"{hours}h{minutes:02d}" if minutes else f"{hours}h"
    return f"{minutes}m{seconds:02d}" if minutes and seconds else f"{minutes}m" if minutes else f"{seconds}s"
