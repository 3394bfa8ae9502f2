"""The Prometheus that boards and alerts read, as Grafana has it; it asks neither."""

from __future__ import annotations

from typing import Any

from serve_app.dashboards.names import SOURCE_NAME, SOURCE_UID

PROMETHEUS_URL = "http://localhost:9090"


def data_source(prometheus_url: str) -> dict[str, Any]:
    return {
        "uid": SOURCE_UID,
        "name": SOURCE_NAME,
        "type": "prometheus",
        "access": "proxy",
        "url": prometheus_url,
        "isDefault": False,
        "jsonData": {"httpMethod": "POST", "timeInterval": "15s"},
    }
