"""Brings a Grafana to what the boards and alerts are here, and leaves alone what is so already; it speaks no HTTP."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal, Protocol

from serve_app.dashboards.alert_rules import alert_rules
from serve_app.dashboards.boards import BOARDS
from serve_app.dashboards.data_source import data_source
from serve_app.dashboards.grafana_board import grafana_board
from serve_app.dashboards.names import FOLDER_TITLE, FOLDER_UID, SOURCE_UID

Change = Literal["created", "updated", "unchanged"]


class Server(Protocol):
    """serve_app.dashboards.grafana_api_client.Grafana, or what is like it."""

    def find(self, path: str) -> dict[str, Any] | None: ...

    def create(self, path: str, body: dict[str, Any]) -> None: ...

    def replace(self, path: str, body: dict[str, Any]) -> None: ...


def publish(server: Server, prometheus_url: str) -> Iterator[tuple[str, Change]]:
    """What became of each thing, in the order in which they need each other."""
    yield f"folder {FOLDER_TITLE}", _folder(server)
    yield "data source", _data_source(server, prometheus_url)
    for board in BOARDS:
        yield f"board {board.title}", _board(server, grafana_board(board))
    for rule in alert_rules():
        yield f"alert {rule['title']}", _alert(server, rule)


def _folder(server: Server) -> Change:
    wanted = {"uid": FOLDER_UID, "title": FOLDER_TITLE}
    found = server.find(f"/folders/{FOLDER_UID}")
    if found is None:
        server.create("/folders", wanted)
        return "created"
    return "unchanged"  # another title is somebody's wish


def _data_source(server: Server, prometheus_url: str) -> Change:
    wanted, path = data_source(prometheus_url), f"/datasources/uid/{SOURCE_UID}"
    found = server.find(path)
    if found is None:
        server.create("/datasources", wanted)
        return "created"
    if holds(found, wanted):
        return "unchanged"
    server.replace(path, wanted)
    return "updated"


def _board(server: Server, wanted: dict[str, Any]) -> Change:
    """The server's version goes back with it: it refuses what would undo another's change."""
    found = server.find(f"/dashboards/uid/{wanted['uid']}")
    if found is not None and holds(found["dashboard"], wanted):
        return "unchanged"
    sent = wanted if found is None else wanted | {"version": found["dashboard"]["version"]}
    server.create("/dashboards/db", {"dashboard": sent, "folderUid": FOLDER_UID, "overwrite": False})
    return "created" if found is None else "updated"


def _alert(server: Server, wanted: dict[str, Any]) -> Change:
    path = f"/v1/provisioning/alert-rules/{wanted['uid']}"
    found = server.find(path)
    if found is None:
        server.create("/v1/provisioning/alert-rules", wanted)
        return "created"
    if holds(found, wanted):
        return "unchanged"
    server.replace(path, wanted)
    return "updated"


def holds(found: Any, wanted: Any) -> bool:
    """Whether all that is wanted is there as it is; a server adds fields of its own."""
    if isinstance(wanted, Mapping):
        return isinstance(found, Mapping) and all(holds(found.get(key), value) for key, value in wanted.items())
    if isinstance(wanted, list):
        return (
            isinstance(found, list)
            and len(found) == len(wanted)
            and all(holds(one, other) for one, other in zip(found, wanted, strict=True))
        )
    return bool(found == wanted)
