"""The Pareto front is that of its definition, and names in a picture hide neither points nor each other."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import matplotlib
import pytest
from matplotlib.text import Annotation, Text

from batch_jobs.evaluate.label_places import place_labels
from batch_jobs.evaluate.pictures import IN_MEMORY, SPEED, Point, draw_pictures, pareto_front, points
from tests.batch_jobs.evaluate.reports import report_of, score_of

matplotlib.use("Agg")
PNG = b"\x89PNG\r\n\x1a\n"
REPORT = report_of(score_of("bf16", 1.0, 269, 40), score_of("int8", 0.98, 163, 60), score_of("nf4", 0.8, 164, 70))


def test_the_front_is_what_nothing_else_beats() -> None:
    assert [point.name for point in pareto_front(points(REPORT, IN_MEMORY), more_is_better=False)] == ["int8", "bf16"]
    assert [point.name for point in pareto_front(points(REPORT, SPEED[0]), more_is_better=True)] == [
        "bf16",
        "int8",
        "nf4",
    ]
    twins = [Point(name=name, x=1.0, loss_percent=2.0) for name in "ab"]
    assert pareto_front([*twins, Point(name="worse", x=1.0, loss_percent=3.0)], more_is_better=True) == twins


def test_a_loss_is_in_percent_of_perplexity() -> None:
    assert [point.loss_percent for point in points(REPORT, IN_MEMORY)] == pytest.approx([0.0, 100 * (1 / 0.98 - 1), 25])


def test_pictures_lie_beside_the_report(tmp_path: Path) -> None:
    written = draw_pictures(REPORT, tmp_path / "r.json")
    assert [path.name for path in written] == ["r-quality-bytes.png", "r-quality-speed.png"]
    assert sorted(tmp_path.iterdir()) == written
    assert all(path.read_bytes().startswith(PNG) for path in written)


def test_without_speed_there_is_one_picture_also_of_bad_losses(tmp_path: Path) -> None:
    report = report_of(score_of("bf16", 1.0, 269), score_of("int3", 0.02, 97, read_bytes=80_000_000))
    assert [path.name for path in draw_pictures(report, tmp_path / "r.json")] == ["r-quality-bytes.png"]


def test_labels_do_not_collide() -> None:
    from matplotlib import pyplot

    places = [(112.0, 7.5), (112.4, 6.4), (111.9, 17.6), (113.0, 24.3), (109.0, 24.5), (163.0, 2.2), (163.2, 2.1)]
    figure, plot = pyplot.subplots(figsize=(7, 4))
    plot.scatter(*zip(*places, strict=True))
    plot.set_xlim(80, 280)
    figure.draw_without_rendering()
    place_labels(plot, places, [f"variant-int4-g{number}" for number in range(len(places))])
    labels = [child for child in plot.get_children() if isinstance(child, Annotation)]
    boxes = [Text.get_window_extent(label) for label in labels]
    inside = plot.get_window_extent()
    markers = plot.transData.transform(places)
    pyplot.close(figure)
    assert len(labels) == len(places)
    assert not any(one.overlaps(other) for one, other in combinations(boxes, 2))
    assert not any(box.contains(*marker) for box in boxes for marker in markers)
    assert all(inside.x0 <= box.x0 and box.x1 <= inside.x1 and inside.y0 <= box.y0 for box in boxes)
