"""Grafana's provisioning files, for those who give them to Grafana themselves; it sends nothing."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from cluster.errors import UserError
from serve_app.dashboards.alert_rules import by_group
from serve_app.dashboards.boards import BOARDS
from serve_app.dashboards.data_source import data_source
from serve_app.dashboards.grafana_board import grafana_board
from serve_app.dashboards.names import FOLDER_TITLE, FOLDER_UID

GRAFANA_FOLDER = "/var/lib/grafana/dashboards/quantfleet"
"""Where Grafana is to find the boards."""
OF_A_PLACE = ("orgID", "folderUID", "ruleGroup")
"""Which a file says of a group once."""


def provisioning_files(prometheus_url: str) -> Iterator[tuple[str, str]]:
    """Path below the folder, and text."""
    for board in BOARDS:
        yield f"dashboards/{board.uid}.json", json.dumps(grafana_board(board), indent=2, sort_keys=True) + "\n"
    yield "provisioning/dashboards/quantfleet.yaml", _yaml({"apiVersion": 1, "providers": [_provider()]})
    source = {"apiVersion": 1, "datasources": [data_source(prometheus_url)]}
    yield "provisioning/datasources/quantfleet.yaml", _yaml(source)
    groups = [_group(name, rules) for name, rules in by_group()]
    # Grafana puts environment variables in the place of $NAME.
    yield "provisioning/alerting/quantfleet.yaml", _yaml({"apiVersion": 1, "groups": groups}).replace("$", "$$")


def write(folder: Path, prometheus_url: str) -> list[Path]:
    """The files that are written, each whole or not at all; UserError where they cannot be."""
    written = []
    for name, text in provisioning_files(prometheus_url):
        path = folder / name
        staged = path.with_name(f".{path.name}.staging")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            staged.write_text(text, encoding="utf-8")
            os.replace(staged, path)
        except OSError as error:
            raise UserError(f"{path}: cannot be written: {error.strerror}; give another folder") from None
        written.append(path)
    return written


def _provider() -> dict[str, Any]:
    return {
        "name": "quantfleet",
        "folder": FOLDER_TITLE,
        "folderUid": FOLDER_UID,
        "type": "file",
        "allowUiUpdates": False,
        "options": {"path": GRAFANA_FOLDER},
    }


def _group(name: str, rules: list[dict[str, Any]]) -> dict[str, Any]:
    kept = [{key: value for key, value in rule.items() if key not in OF_A_PLACE} for rule in rules]
    return {"orgId": 1, "name": name, "folder": FOLDER_TITLE, "interval": "1m", "rules": kept}


def _yaml(content: dict[str, Any]) -> str:
    return yaml.safe_dump(content, sort_keys=False, width=120)
