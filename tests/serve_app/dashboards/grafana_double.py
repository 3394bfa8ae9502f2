"""What publishing needs of Grafana's HTTP API, with its tokens and versions, on loopback; it draws no board."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

TOKEN, VIEWER_TOKEN = "glsa_admin", "glsa_viewer"


@dataclass(slots=True, kw_only=True)
class GrafanaDouble:
    """Its state, and every request that would change it."""

    url: str = ""
    folders: dict[str, Any] = field(default_factory=dict)
    sources: dict[str, Any] = field(default_factory=dict)
    boards: dict[str, dict[str, Any]] = field(default_factory=dict)
    rules: dict[str, Any] = field(default_factory=dict)
    changes: list[tuple[str, str]] = field(default_factory=list)
    raced: bool = False
    """Somebody else saves a board between its reading and its writing."""

    def app(self) -> FastAPI:
        api = FastAPI()
        api.middleware("http")(self._guarded)
        for path, kept, key in (
            ("/api/folders", self.folders, "uid"),
            ("/api/datasources", self.sources, "uid"),
            ("/api/v1/provisioning/alert-rules", self.rules, "uid"),
        ):
            self._collection(api, path, kept, key)
        api.get("/api/dashboards/uid/{uid}")(self._board)
        api.post("/api/dashboards/db")(self._save_board)
        return api

    async def _guarded(self, request: Request, answer: Any) -> Any:
        token = request.headers.get("authorization", "").removeprefix("Bearer ")
        if token not in (TOKEN, VIEWER_TOKEN):
            return JSONResponse({"message": "Invalid API key"}, 401)
        if request.method != "GET":
            if token == VIEWER_TOKEN:
                return JSONResponse({"message": "Permission denied"}, 403)
            self.changes.append((request.method, request.url.path))
        return await answer(request)

    def _collection(self, api: FastAPI, path: str, kept: dict[str, Any], key: str) -> None:
        by_uid = path + ("/uid/{uid}" if path.endswith("datasources") else "/{uid}")

        def find(uid: str) -> Any:
            return kept[uid] | {"id": 7} if uid in kept else JSONResponse({"message": "not found"}, 404)

        async def create(request: Request) -> Any:
            body = await request.json()
            if body[key] in kept:
                return JSONResponse({"message": "it exists already"}, 409)
            kept[body[key]] = body
            return body

        async def replace(uid: str, request: Request) -> Any:
            kept[uid] = await request.json()
            return kept[uid]

        api.get(by_uid, response_model=None)(find)
        api.post(path, response_model=None)(create)
        api.put(by_uid, response_model=None)(replace)

    def _board(self, uid: str) -> Any:
        if uid not in self.boards:
            return JSONResponse({"message": "Dashboard not found"}, 404)
        found = {"dashboard": dict(self.boards[uid]), "meta": {"folderUid": "quantfleet"}}
        if self.raced:
            self.boards[uid]["version"] += 1
        return found

    async def _save_board(self, request: Request) -> Any:
        body = await request.json()
        board = body["dashboard"]
        known = self.boards.get(board["uid"])
        if known is not None and board.get("version") != known["version"] and not body["overwrite"]:
            message = "The dashboard has been changed by someone else"
            return JSONResponse({"message": message, "status": "version-mismatch"}, 412)
        self.boards[board["uid"]] = board | {"id": 7, "version": (known["version"] if known else 0) + 1}
        return {"status": "success", "uid": board["uid"]}


@contextmanager
def grafana_double() -> Iterator[GrafanaDouble]:
    double = GrafanaDouble()
    server = uvicorn.Server(uvicorn.Config(double.app(), host="127.0.0.1", port=0, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            time.sleep(0.01)
        double.url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
        yield double
    finally:
        server.should_exit = True
        thread.join()
