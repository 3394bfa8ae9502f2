"""`quantfleet dashboards publish` against a double of Grafana's API: once, again, and where it is refused."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest
from typer.testing import CliRunner, Result

from quantfleet import app
from tests.serve_app.dashboards.grafana_double import TOKEN, VIEWER_TOKEN, GrafanaDouble, grafana_double


@pytest.fixture
def grafana() -> Iterator[GrafanaDouble]:
    with grafana_double() as double:
        yield double


def publish(url: str, *options: str, token: str = TOKEN) -> Result:
    command = ["dashboards", "publish", "--url", url, *options]
    return CliRunner().invoke(app, command, env={"QUANTFLEET_GRAFANA_TOKEN": token})


def changes(result: Result) -> set[str]:
    return {line.split()[0] for line in result.stdout.splitlines()}


def test_the_second_time_changes_nothing(grafana: GrafanaDouble) -> None:
    first = publish(grafana.url)
    assert (first.exit_code, changes(first)) == (0, {"created"}), first.output
    assert len(grafana.boards) == 3
    assert set(grafana.folders) == {"quantfleet"}
    assert len(grafana.rules) >= 6
    (source,) = grafana.sources.values()
    assert source["url"] == "http://localhost:9090"
    grafana.changes.clear()
    second = publish(grafana.url)
    assert (second.exit_code, changes(second)) == (0, {"unchanged"})
    assert grafana.changes == []


def test_only_what_differs_is_brought_back(grafana: GrafanaDouble) -> None:
    publish(grafana.url)
    board = grafana.boards["quantfleet-fleet"]
    board["title"] = "mine"
    next(iter(grafana.rules.values()))["for"] = "1h"
    grafana.changes.clear()
    again = publish(grafana.url, "--prometheus-url", "http://prometheus:9090")
    assert again.exit_code == 0
    assert sum(line.startswith("updated") for line in again.stdout.splitlines()) == len(grafana.changes) == 3
    assert grafana.boards["quantfleet-fleet"]["title"] == "quantfleet: fleet"
    assert grafana.boards["quantfleet-fleet"]["version"] == 2
    assert next(iter(grafana.sources.values()))["url"] == "http://prometheus:9090"


def test_a_version_conflict(grafana: GrafanaDouble) -> None:
    publish(grafana.url)
    grafana.boards["quantfleet-fleet"]["title"] = "theirs"
    grafana.raced = True
    told_in_a_line(publish(grafana.url), "changed by somebody else meanwhile (version conflict)")
    assert grafana.boards["quantfleet-fleet"]["title"] == "theirs"


@pytest.mark.parametrize(
    ("token", "told"), [("glsa_wrong", "the token is not valid there"), (VIEWER_TOKEN, "it needs the role Admin")]
)
def test_a_wrong_token(grafana: GrafanaDouble, token: str, told: str) -> None:
    result = publish(grafana.url, token=token)
    told_in_a_line(result, told)
    assert token not in result.output


def test_nobody_answers() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    told_in_a_line(publish(url), f"{url}: no Grafana answers there")


def test_something_else_answers(grafana: GrafanaDouble) -> None:
    told_in_a_line(publish(f"{grafana.url}/elsewhere/"), "/folders: Client Error 404")


def told_in_a_line(result: Result, told: str) -> None:
    assert result.exit_code == 1, result.output
    (line,) = result.stderr.splitlines()
    assert told in line
