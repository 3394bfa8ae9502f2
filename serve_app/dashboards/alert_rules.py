"""Grafana's alert rules from Prometheus' alerts, so that nothing is written twice; it evaluates none."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

import yaml

from serve_app.dashboards.names import FOLDER_UID, SOURCE_UID

QUERY, CONDITION = "A", "B"
LOOK_BACK_S = 600
"""An instant query takes the newest sample of so long a time."""


def alert_rules() -> list[dict[str, Any]]:
    """As Grafana's provisioning API takes them; they read what infra/prometheus/rules/recording.yml records."""
    return [
        _rule(group["name"], rule)
        for group in yaml.safe_load(_alerts_file().read_text())["groups"]
        for rule in group["rules"]
        if "alert" in rule
    ]


def by_group() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    rules = alert_rules()
    for name in dict.fromkeys(rule["ruleGroup"] for rule in rules):
        yield name, [rule for rule in rules if rule["ruleGroup"] == name]


def _alerts_file() -> Traversable:
    """In a wheel beside this file, in the repository where Prometheus has it."""
    packed = files("serve_app.dashboards").joinpath("rules", "alerts.yml")
    return packed if packed.is_file() else Path(__file__).parents[2] / "infra" / "prometheus" / "rules" / "alerts.yml"


def _rule(group: str, rule: dict[str, Any]) -> dict[str, Any]:
    return {
        "uid": _uid(rule["alert"]),
        "orgID": 1,
        "folderUID": FOLDER_UID,
        "ruleGroup": group,
        "title": rule["alert"],
        "condition": CONDITION,
        "for": rule.get("for", "0s"),
        # An alert's expression has a series for whom it is true, and none where all is well.
        "noDataState": "OK",
        "execErrState": "Error",
        "labels": rule["labels"],
        "annotations": {name: _template(text) for name, text in rule["annotations"].items()},
        "data": [_query(rule["expr"].strip()), _is_there()],
    }


def _uid(alert: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "-", alert).lower()


def _query(expr: str) -> dict[str, Any]:
    return {
        "refId": QUERY,
        "relativeTimeRange": {"from": LOOK_BACK_S, "to": 0},
        "datasourceUid": SOURCE_UID,
        "model": {"refId": QUERY, "expr": expr, "instant": True, "range": False},
    }


def _is_there() -> dict[str, Any]:
    return {
        "refId": CONDITION,
        "relativeTimeRange": {"from": 0, "to": 0},
        "datasourceUid": "__expr__",
        "model": {"refId": CONDITION, "type": "math", "expression": f"is_number(${QUERY})"},
    }


def _template(text: str) -> str:
    """Grafana's $value is all queries as text; Prometheus' is the number."""
    return text.replace("$value", f"$values.{QUERY}.Value")
