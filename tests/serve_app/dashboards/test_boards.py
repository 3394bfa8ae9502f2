"""The boards: expressions that Prometheus understands, of metrics that there are; panels that do not overlap."""

from __future__ import annotations

import re
from itertools import combinations
from typing import Any

import pytest

from cluster.metric_catalogue import CATALOGUE
from serve_app.dashboards.boards import BOARDS, expressions
from serve_app.dashboards.grafana_board import grafana_board
from serve_app.dashboards.panel import Board

promql_parser = pytest.importorskip("promql_parser", reason="promql-parser is not installed")
EXPRESSIONS = list(expressions())


@pytest.mark.parametrize("expr", [each.expr for each in EXPRESSIONS])
def test_an_expression_parses(expr: str) -> None:
    promql_parser.parse(expr)
    assert "$" not in expr


def test_every_metric_is_on_a_board_and_none_else() -> None:
    exported = {
        f"{metric.exported}{part}"
        for metric in CATALOGUE
        for part in (("_bucket", "_sum", "_count") if metric.kind == "histogram" else ("",))
    }
    used = {name for each in EXPRESSIONS for name in re.findall(r"ray_\w+", each.expr)}
    assert used <= exported
    shown = {name.removesuffix(part) for name in used for part in ("", "_bucket", "_sum", "_count")}
    assert {metric.exported for metric in CATALOGUE} <= shown


@pytest.mark.parametrize("board", BOARDS, ids=lambda board: board.uid)
def test_panels_have_places_of_their_own(board: Board) -> None:
    panels = grafana_board(board)["panels"]
    assert len(panels) > 8
    for one, other in combinations((panel["gridPos"] for panel in panels), 2):
        assert apart(one, other), (one, other)
    assert all(panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24 for panel in panels)
    drawn = [panel for panel in panels if panel["type"] != "row"]
    assert all(panel["description"] and panel["fieldConfig"]["defaults"]["unit"] for panel in drawn)
    assert len({panel["title"] for panel in drawn}) == len(drawn)


def apart(one: dict[str, Any], other: dict[str, Any]) -> bool:
    beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
    return beside or one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
