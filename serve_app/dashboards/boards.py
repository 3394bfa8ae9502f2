"""All boards, and every expression in them as Prometheus takes it; it makes no JSON."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from serve_app.dashboards.autoscaler_board import AUTOSCALER
from serve_app.dashboards.engine_board import ENGINE
from serve_app.dashboards.fleet_board import FLEET

BOARDS = (FLEET, AUTOSCALER, ENGINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Expression:
    board: str
    panel: str
    expr: str


def expressions(rate_interval: str = "1m") -> Iterator[Expression]:
    """With all classes and variants chosen."""
    for board in BOARDS:
        for row in board.rows:
            for panel in row.panels:
                for query in panel.queries:
                    expr = query.expr.replace("$__rate_interval", rate_interval)
                    yield Expression(board=board.uid, panel=panel.title, expr=re.sub(r"\$\w+", ".*", expr))
