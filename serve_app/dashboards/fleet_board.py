"""The board of a fleet: what its users get, class by class and variant by variant, and what that takes."""

from __future__ import annotations

from cluster.metric_catalogue import CATALOGUE as M
from serve_app.dashboards.panel import Board, Row, panel, query
from serve_app.dashboards.promql import increase, mean, quantile, rate, share, total

ATTAINMENT = Row(
    title="Promises",
    panels=(
        panel(
            "SLO attainment",
            "percentunit",
            "Of the requests that arrived, the share answered within every limit of their class.",
            query(share(total(rate(M.met), "slo_class"), total(rate(M.offered), "slo_class")), "{{slo_class}}"),
        ),
        panel(
            "Goodput",
            "reqps",
            "Requests a second answered within every limit of their class.",
            query(total(rate(M.met), "slo_class"), "{{slo_class}}"),
        ),
        panel(
            "Goodput per accelerator",
            "reqps",
            "Requests a second within their limits, by the accelerators that replicas hold: what judges a policy.",
            query(f"{total(rate(M.met))} / {total(rate(M.accelerator_seconds))}", "requests/s"),
        ),
    ),
)
REQUESTS = Row(
    title="Requests",
    panels=(
        panel(
            "Offered and served",
            "reqps",
            "Requests that arrived, and those answered to the end.",
            query(total(rate(M.offered), "slo_class"), "{{slo_class}} offered"),
            query(total(rate(M.served), "slo_class"), "{{slo_class}} served"),
        ),
        panel(
            "Not served",
            "reqps",
            "Refused with 429, ended by a server error, left by their client; and served beyond a limit or a floor.",
            query(total(rate(M.rejected), "slo_class"), "{{slo_class}} rejected"),
            query(total(rate(M.failed), "slo_class"), "{{slo_class}} failed"),
            query(total(rate(M.cancelled), "slo_class"), "{{slo_class}} cancelled"),
            query(total(rate(M.degraded), "slo_class"), "{{slo_class}} degraded"),
        ),
        panel(
            "Waiting",
            "short",
            "Requests without a first token.",
            query(total(M.waiting.exported), "requests"),
        ),
    ),
)
LATENCY = Row(
    title="Latency",
    panels=(
        panel(
            "Time to first token",
            "s",
            "Median and 99th percentile by class.",
            query(quantile(0.5, M.ttft, "slo_class"), "{{slo_class}} p50"),
            query(quantile(0.99, M.ttft, "slo_class"), "{{slo_class}} p99"),
        ),
        panel(
            "Time per output token",
            "s",
            "Median and 99th percentile by class, of each answer's mean.",
            query(quantile(0.5, M.tpot, "slo_class"), "{{slo_class}} p50"),
            query(quantile(0.99, M.tpot, "slo_class"), "{{slo_class}} p99"),
        ),
        panel(
            "Whole answers",
            "s",
            "From a request's arrival to its last token.",
            query(quantile(0.5, M.duration, "slo_class"), "{{slo_class}} p50"),
            query(quantile(0.99, M.duration, "slo_class"), "{{slo_class}} p99"),
        ),
        panel(
            "Where the time to first token goes",
            "s",
            "On average: in queues, on the ways through Ray Serve, and in all.",
            query(mean(M.queue, "variant"), "{{variant}} queue"),
            query(mean(M.framework, "variant"), "{{variant}} framework"),
            query(mean(M.ttft, "variant"), "{{variant}} in all"),
            width=24,
        ),
    ),
)
VARIANTS = Row(
    title="Variants side by side",
    panels=(
        panel(
            "Served by variant",
            "reqps",
            "Where the router sends requests.",
            query(total(rate(M.served), "variant"), "{{variant}}"),
        ),
        panel(
            "TTFT by variant",
            "s",
            "95th percentile.",
            query(quantile(0.95, M.ttft, "variant"), "{{variant}}"),
        ),
        panel(
            "TPOT by variant",
            "s",
            "95th percentile.",
            query(quantile(0.95, M.tpot, "variant"), "{{variant}}"),
        ),
    ),
)
COST = Row(
    title="Cost",
    panels=(
        panel(
            "Accelerators held",
            "short",
            "By replicas, by their shares.",
            query(total(rate(M.accelerator_seconds), "variant"), "{{variant}}"),
        ),
        panel(
            "Accelerator-hours of a day",
            "h",
            "Held by replicas over the last 24 hours.",
            query(f"{total(increase(M.accelerator_seconds, '24h'), 'variant')} / 3600", "{{variant}}"),
        ),
        panel(
            "Accelerators at work, by class",
            "short",
            "Predicted seconds of an accelerator a second that a class's requests took; what is held beyond was idle.",
            query(total(rate(M.request_seconds), "slo_class"), "{{slo_class}}"),
        ),
        panel(
            "Tokens in prompts",
            "short",
            "A second, cached ones included.",
            query(total(rate(M.prompt_tokens), "slo_class", "variant"), "{{slo_class}} {{variant}}"),
            width=12,
        ),
        panel(
            "Tokens generated",
            "short",
            "A second, for requests that have ended.",
            query(total(rate(M.generated_tokens), "slo_class", "variant"), "{{slo_class}} {{variant}}"),
            width=12,
        ),
    ),
)
FLEET = Board(
    uid="quantfleet-fleet",
    title="quantfleet: fleet",
    description="What users get, class by class and variant by variant, and what it takes.",
    rows=(ATTAINMENT, REQUESTS, LATENCY, VARIANTS, COST),
)
