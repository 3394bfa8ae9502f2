"""`quantfleet dashboards write`: the files, and that infra/grafana is what it writes."""

from __future__ import annotations

import json
from pathlib import Path

import yaml
from typer.testing import CliRunner

from quantfleet import app
from serve_app.dashboards.alert_rules import alert_rules
from serve_app.dashboards.data_source import PROMETHEUS_URL
from serve_app.dashboards.provisioning import provisioning_files

INFRA = Path(__file__).parents[3] / "infra"


def test_infra_is_what_is_written() -> None:
    folder = INFRA / "grafana"
    written = dict(provisioning_files(PROMETHEUS_URL))
    there = {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}
    assert there == written, "run quantfleet dashboards write infra/grafana"


def test_the_command_writes_boards_and_what_points_at_them(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["dashboards", "write", str(tmp_path), "--prometheus-url", "http://p:9090"])
    assert result.exit_code == 0, result.output
    paths = [Path(line) for line in result.stdout.splitlines()]
    boards = [json.loads(path.read_text()) for path in paths if path.suffix == ".json"]
    assert len({board["uid"] for board in boards}) == 3
    source = yaml.safe_load((tmp_path / "provisioning/datasources/quantfleet.yaml").read_text())["datasources"][0]
    assert (source["type"], source["url"]) == ("prometheus", "http://p:9090")
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path not in paths]


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = CliRunner().invoke(app, ["dashboards", "write", str(tmp_path / "file")])
    assert "cannot be written" in str(result.exception)


def test_every_alert_of_prometheus_is_one_of_grafana() -> None:
    groups = yaml.safe_load((INFRA / "prometheus" / "rules" / "alerts.yml").read_text())["groups"]
    alerts = {rule["alert"]: rule for group in groups for rule in group["rules"]}
    rules = {rule["title"]: rule for rule in alert_rules()}
    assert rules.keys() == alerts.keys()
    assert len({rule["uid"] for rule in rules.values()}) == len(rules)
    for name, rule in rules.items():
        assert rule["data"][0]["model"]["expr"] == alerts[name]["expr"].strip()
        assert rule["labels"] == alerts[name]["labels"]
        assert "$value " not in str(rule["annotations"])
