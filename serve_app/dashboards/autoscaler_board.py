"""The board of the autoscaler: what it plans for, which bound binds, what it decides, how far predictions are off."""

from __future__ import annotations

from cluster.metric_catalogue import CATALOGUE as M
from serve_app.dashboards.panel import Board, Row, panel, query
from serve_app.dashboards.promql import quantile, rate, series, share, total

DEMAND = Row(
    title="Demand and bounds",
    panels=(
        panel(
            "Demand",
            "reqps",
            "What arrives, and what the last decision planned for: its forecast, with what waits.",
            query(total(rate(M.offered), "slo_class"), "{{slo_class}} arrives"),
            query(total(series(M.demand), "slo_class"), "{{slo_class}} planned"),
        ),
        panel(
            "KV bound and rate bound",
            "short",
            "Full replicas that the demand needs by what its sequences hold of the KV cache, and by what its tokens"
            " take of an engine: the larger decides.",
            query(total(series(M.needed_replicas), "variant", "bound"), "{{variant}} {{bound}}"),
        ),
        panel(
            "Binding bound",
            "short",
            "1 for what ends a class's batch on its variant.",
            query(series(M.binding), "{{slo_class}} {{variant}} {{bound}}"),
        ),
    ),
)
DECISIONS = Row(
    title="Decisions",
    panels=(
        panel(
            "Replicas wanted and running",
            "short",
            "Of the last decision, and those that tell of themselves.",
            query(total(series(M.target_replicas), "variant"), "{{variant}} wanted"),
            query(f"count by (variant) ({series(M.kv_capacity)})", "{{variant}} running"),
            width=12,
        ),
        panel(
            "Age of the last decision",
            "s",
            "Decisions are autoscaling.interval_s apart; one that is minutes old is a controller that stands still.",
            query(f"max({M.decision_age.exported})", "age"),
            width=12,
        ),
    ),
)
PREDICTIONS = Row(
    title="Predictions",
    panels=(
        panel(
            "Measured over predicted step time",
            "short",
            "Smoothed, by replica; 1 where the profile is right. Routing and planning correct for it.",
            query(series(M.step_time_ratio), "{{variant}} {{replica}}"),
        ),
        panel(
            "Measured over predicted TTFT",
            "short",
            "Median and 90th percentile by variant; 1 where the router is right.",
            query(quantile(0.5, M.ttft_ratio, "variant"), "{{variant}} p50"),
            query(quantile(0.9, M.ttft_ratio, "variant"), "{{variant}} p90"),
        ),
        panel(
            "Measured over predicted TPOT",
            "short",
            "Median and 90th percentile by variant.",
            query(quantile(0.5, M.tpot_ratio, "variant"), "{{variant}} p50"),
            query(quantile(0.9, M.tpot_ratio, "variant"), "{{variant}} p90"),
        ),
        panel(
            "Use of what is held",
            "percentunit",
            "Predicted accelerator seconds of requests by the seconds that replicas held: low is room to shrink.",
            query(
                share(total(rate(M.request_seconds), "variant"), total(rate(M.accelerator_seconds), "variant")),
                "{{variant}}",
            ),
            width=24,
        ),
    ),
)
AUTOSCALER = Board(
    uid="quantfleet-autoscaler",
    title="quantfleet: autoscaler",
    description="Demand, KV bound and rate bound, decisions and predictions.",
    rows=(DEMAND, DECISIONS, PREDICTIONS),
)
