"""PromQL of the catalogue's metrics, narrowed to what is chosen on a board; it knows no panel."""

from __future__ import annotations

from cluster.metric_catalogue import Metric

CHOSEN = ("slo_class", "variant")
"""Labels that a board lets one choose."""
WINDOW = "$__rate_interval"


def series(metric: Metric, **labels: str) -> str:
    """All series of it that are chosen; `labels` that are to be equal, too."""
    return _selected(metric, metric.exported, labels)


def rate(metric: Metric, **labels: str) -> str:
    """Of a counter, per second."""
    return f"rate({series(metric, **labels)}[{WINDOW}])"


def increase(metric: Metric, window: str) -> str:
    return f"increase({series(metric)}[{window}])"


def total(expr: str, *by: str) -> str:
    """Summed over all labels but these."""
    return f"sum by ({', '.join(by)}) ({expr})" if by else f"sum({expr})"


def quantile(q: float, metric: Metric, *by: str) -> str:
    """Of a histogram."""
    buckets = f"rate({_selected(metric, f'{metric.exported}_bucket', {})}[{WINDOW}])"
    return f"histogram_quantile({q:g}, {total(buckets, 'le', *by)})"


def mean(metric: Metric, *by: str) -> str:
    """Of a histogram."""
    sums, counts = (
        total(f"rate({_selected(metric, f'{metric.exported}_{part}', {})}[{WINDOW}])", *by) for part in ("sum", "count")
    )
    return f"{sums} / {counts}"


def share(part: str, whole: str) -> str:
    """Without a value where the whole is 0."""
    return f"{part} / ({whole} > 0)"


def _selected(metric: Metric, name: str, labels: dict[str, str]) -> str:
    chosen = [f'{label}=~"${label}"' for label in CHOSEN if label in metric.labels and label not in labels]
    equal = [f'{label}="{value}"' for label, value in labels.items()]
    matchers = ", ".join([*chosen, *equal])
    return f"{name}{{{matchers}}}" if matchers else name
