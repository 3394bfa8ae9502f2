"""docs/metrics.md from the catalogue: `python -m serve_app.metrics.document` writes it; it reads no running fleet."""

from __future__ import annotations

from pathlib import Path

from cluster.metric_catalogue import CATALOGUE, Metric, Source

PATH = Path(__file__).parents[2] / "docs" / "metrics.md"
TITLES: dict[Source, str] = {
    "ingress": "Requests, told by the ingress",
    "replica": "Engines, told by each replica",
    "planner": "Scaling, told by the ingress",
    "job": "Batch jobs, told by their engines' actors",
}
OPENING = """# Metrics

Ray's agents export them, one a node, at the addresses that `quantfleet serve` tells at its start: with
`metrics: {port: 9464}` in fleet.yaml it is that port of this host, which infra/prometheus/prometheus.yml scrapes. Names
are as exported: `ray_` before them, `_total` behind a counter; of a histogram there are `_bucket`, `_sum` and `_count`.
To the labels here Ray adds `application`, `deployment` and `replica` (of the ingress or of the replica that tells),
`SessionName`, `WorkerId` and others of its own. `slo_class` is a class of fleet.yaml, or `request` for limits that a
request brings. Background requests, which keep no limits, are class
`background` and counted where they are served, and not among the offered. Counters begin at 0 when a process starts;
series of a process that has ended are gone after half a minute. `metrics: {enabled: false}` in fleet.yaml records none.

This file is made from cluster/metric_catalogue.py by `python -m serve_app.metrics.document`.
"""


def document() -> str:
    parts = [OPENING]
    for source, title in TITLES.items():
        rows = [_row(metric) for metric in CATALOGUE if metric.source == source]
        parts.append(
            "\n".join([f"## {title}", "", "| metric | kind | labels | what it is |", "|---|---|---|---|", *rows, ""])
        )
    return "\n".join(parts)


def _row(metric: Metric) -> str:
    labels = ", ".join(f"`{label}`" for label in metric.labels)
    return f"| `{metric.exported}` | {metric.kind} | {labels} | {metric.help} |"


def main() -> None:
    PATH.write_text(document(), encoding="utf-8")


if __name__ == "__main__":
    main()
