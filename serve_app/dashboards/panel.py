"""Boards as plain data: rows of panels, panels of queries; it knows no metric and no Grafana."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    expr: str
    """PromQL; $slo_class and $variant stand for what is chosen on the board, $__rate_interval for some scrapes."""
    legend: str
    """With {{label}}."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    title: str
    description: str
    unit: str
    """As Grafana names it: s, reqps, percentunit, short, bytes."""
    queries: tuple[Query, ...]
    width: int = 8
    """Of 24."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    title: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Board:
    uid: str
    """Also its file's name."""
    title: str
    description: str
    rows: tuple[Row, ...]


def panel(title: str, unit: str, description: str, *queries: Query, width: int = 8) -> Panel:
    return Panel(title=title, description=description, unit=unit, queries=queries, width=width)


def query(expr: str, legend: str) -> Query:
    return Query(expr=expr, legend=legend)
