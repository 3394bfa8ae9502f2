"""The commands `dashboards write` and `dashboards publish`; they import what they need when they run."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from cluster.errors import UserError
from serve_app.dashboards.data_source import PROMETHEUS_URL

PrometheusOption = Annotated[
    str, typer.Option("--prometheus-url", help="Of the Prometheus that scrapes the fleet, as Grafana reaches it.")
]


def register(app: typer.Typer) -> None:
    dashboards = typer.Typer(help="Grafana's boards, data source and alerts of a fleet.", no_args_is_help=True)
    dashboards.command("write")(write)
    dashboards.command("publish")(publish)
    app.add_typer(dashboards, name="dashboards")


def write(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where to; files of the same names are replaced.")],
    prometheus_url: PrometheusOption = PROMETHEUS_URL,
) -> None:
    """Write Grafana's provisioning files: boards as JSON, data source and alert rules as YAML."""
    _require("grafana_foundation_sdk")
    from serve_app.dashboards.provisioning import write as write_files

    for path in write_files(folder, prometheus_url):
        typer.echo(str(path))


def publish(
    url: Annotated[str, typer.Option(help="Grafana's address.")],
    token: Annotated[
        str, typer.Option(envvar="QUANTFLEET_GRAFANA_TOKEN", help="Of a service account with the role Admin.")
    ],
    prometheus_url: PrometheusOption = PROMETHEUS_URL,
) -> None:
    """Bring a running Grafana to the boards, data source and alert rules of this version; what is so already stays."""
    _require("grafana_foundation_sdk", "grafana_api")
    from serve_app.dashboards.grafana_api_client import Grafana, GrafanaError
    from serve_app.dashboards.publishing import publish as publish_all

    try:
        for what, change in publish_all(Grafana(url, token), prometheus_url):
            typer.echo(f"{change:9} {what}")
    except GrafanaError as error:
        typer.echo(f"quantfleet: {error}", err=True)
        raise typer.Exit(1) from None


def _require(*packages: str) -> None:
    if any(find_spec(package) is None for package in packages):
        raise UserError("dashboards: Grafana's packages are not installed; pip install 'quantfleet[ops]'")
