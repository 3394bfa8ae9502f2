"""The rules: promtool's own tests, and no name that nobody records."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.metric_catalogue import CATALOGUE

FOLDER = Path(__file__).parents[2] / "infra" / "prometheus"
RULES = sorted((FOLDER / "rules").glob("*.yml"))
needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool (Debian's prometheus) is not here"
)


def rules() -> list[dict[str, Any]]:
    return [rule for path in RULES for group in yaml.safe_load(path.read_text())["groups"] for rule in group["rules"]]


def test_every_series_is_recorded_by_the_fleet_or_by_a_rule() -> None:
    exported = {metric.exported for metric in CATALOGUE if metric.kind != "histogram"}
    for metric in CATALOGUE:
        if metric.kind == "histogram":
            exported |= {f"{metric.exported}_{part}" for part in ("bucket", "sum", "count")}
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    used = {
        name for rule in rules() for name in re.findall(r"\b(?:ray_quantfleet|quantfleet:)[a-zA-Z0-9_:]+", rule["expr"])
    }
    assert used
    assert used <= exported | recorded


def test_every_alert_says_how_bad_it_is_and_what_to_do() -> None:
    alerts = [rule for rule in rules() if "alert" in rule]
    assert len(alerts) >= 6
    for alert in alerts:
        assert alert["labels"]["severity"] in ("page", "warn")
        assert {"summary", "description"} <= set(alert["annotations"])


@needs_promtool
def test_promtool_finds_no_mistake() -> None:
    subprocess.run(["promtool", "check", "rules", *map(str, RULES)], check=True, capture_output=True)


@needs_promtool
@pytest.mark.parametrize("path", sorted((FOLDER / "rules" / "tests").glob("*.yml")), ids=lambda path: path.stem)
def test_promtools_tests_pass(path: Path) -> None:
    found = subprocess.run(["promtool", "test", "rules", path.name], cwd=path.parent, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout + found.stderr


def test_every_alert_has_a_test() -> None:
    tested = "".join(path.read_text() for path in (FOLDER / "rules" / "tests").glob("*.yml"))
    assert not [rule["alert"] for rule in rules() if "alert" in rule and f"alertname: {rule['alert']}" not in tested]
