"""A board as Grafana's JSON, through grafana-foundation-sdk; it knows no board's contents and sends nothing."""

from __future__ import annotations

import json
from typing import Any

from grafana_foundation_sdk.builders import common, dashboard, prometheus, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import LegendDisplayMode, LegendPlacement, SortOrder, TooltipDisplayMode
from grafana_foundation_sdk.models.dashboard import (
    DashboardCursorSync,
    DataSourceRef,
    VariableOption,
    VariableRefresh,
    VariableSort,
)

from cluster.metric_catalogue import CATALOGUE
from serve_app.dashboards.panel import Board, Panel
from serve_app.dashboards.promql import CHOSEN

SOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")
ALL = VariableOption(selected=True, text="All", value="$__all")
PANEL_HEIGHT = 8


def grafana_board(board: Board) -> dict[str, Any]:
    """Dashboard JSON without id and version, which are the server's."""
    builder = (
        dashboard.Dashboard(board.title)
        .uid(board.uid)
        .description(board.description)
        .tags(["quantfleet"])
        .refresh("15s")
        .time("now-1h", "now")
        .timezone("browser")
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .with_variable(dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus"))
    )
    for label in CHOSEN:
        builder = builder.with_variable(_variable(label))
    for row in board.rows:
        builder = builder.with_row(dashboard.Row(row.title))
        for panel in row.panels:
            builder = builder.with_panel(_panel(panel))
    found = json.loads(JSONEncoder(sort_keys=True).encode(builder.build()))
    return {key: value for key, value in found.items() if key not in ("id", "version")}


def _variable(label: str) -> dashboard.QueryVariable:
    """What the fleet has told of, all of it at first."""
    return (
        dashboard.QueryVariable(label)
        .label({"slo_class": "SLO class", "variant": "Variant"}[label])
        .datasource(SOURCE)
        .query(f"label_values({CATALOGUE.served.exported}, {label})")
        .multi(True)
        .include_all(True)
        .all_value(".*")
        .current(ALL)
        .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(VariableSort.ALPHABETICAL_ASC)
    )


def _panel(panel: Panel) -> timeseries.Panel:
    legend = common.VizLegendOptions().display_mode(LegendDisplayMode.LIST).placement(LegendPlacement.BOTTOM)
    tooltip = common.VizTooltipOptions().mode(TooltipDisplayMode.MULTI).sort(SortOrder.DESCENDING)
    builder = (
        timeseries.Panel()
        .title(panel.title)
        .description(panel.description)
        .datasource(SOURCE)
        .unit(panel.unit)
        .min(0)
        .span(panel.width)
        .height(PANEL_HEIGHT)
        .legend(legend.show_legend(True))
        .tooltip(tooltip)
    )
    for number, query in enumerate(panel.queries):
        target = prometheus.Dataquery().expr(query.expr).legend_format(query.legend).ref_id(chr(ord("A") + number))
        builder = builder.with_target(target.range())
    return builder
