"""`quantfleet top` over HTTP: one frame, a fleet that goes away and comes back, and the line where there is none."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from rich.console import Console
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from cluster.errors import UserError
from serve_app.ray_settings import free_ports
from serve_app.top import FleetClient, show, show_once

KEY = "qf-right"
CLASS = {"ttft_ms": 300.0, "tpot_ms": None, "offered": 8, "met": 6, "attainment": 0.75}
STATE: dict[str, Any] = {
    "model": "small",
    "in_flight": 2,
    "background_in_flight": 0,
    "queued": 1,
    "variants": [{"name": "bf16", "replicas": []}],
    "slo_classes": {"standard": CLASS},
    "scaling": None,
}


@dataclass
class Fleet:
    """A server on a port of its own; `answers` next, and then the last of them for ever."""

    port: int
    answers: list[Response] = field(default_factory=lambda: [JSONResponse(STATE)])
    asked: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def fleet(self, request: Request) -> Response:
        self.asked += 1
        if request.headers.get("authorization") != f"Bearer {KEY}":
            return JSONResponse({"error": {"message": "no such key"}}, status_code=401)
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


@pytest.fixture
def fleet() -> Iterator[Fleet]:
    served = Fleet(port=free_ports(1)[0])
    app = Starlette(routes=[Route("/v1/fleet", served.fleet)])
    server = uvicorn.Server(uvicorn.Config(app, port=served.port, log_level="error", lifespan="off"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield served
    server.should_exit = True
    thread.join()


def terminal() -> Console:
    return Console(width=80, height=24, file=io.StringIO(), force_terminal=True)


def written(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_one_frame(fleet: Fleet) -> None:
    console = Console(width=80, file=io.StringIO())
    show_once(FleetClient(f"{fleet.url}/v1/", KEY), console)
    text = written(console)
    assert "2 in flight" in text
    assert "75.0%" in text
    assert fleet.asked == 1


@pytest.mark.parametrize(
    ("key", "told"), [(None, "was given none"), ("qf-wrong", "refuses the one in QUANTFLEET_API_KEY")]
)
def test_a_wrong_key_is_one_line(fleet: Fleet, key: str | None, told: str) -> None:
    with pytest.raises(UserError, match=told) as caught:
        show_once(FleetClient(fleet.url, key), terminal())
    assert "qf-wrong" not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "answer", [PlainTextResponse("hello"), JSONResponse({"model": "small"}), JSONResponse({}, status_code=404)]
)
def test_another_server_is_no_fleet(fleet: Fleet, answer: Response) -> None:
    fleet.answers = [answer]
    with pytest.raises(UserError, match="is no fleet"):
        show_once(FleetClient(fleet.url, KEY), terminal())


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "ftp://x", "http://[::1", "http://a b:8000"])
def test_an_address_that_is_none(url: str) -> None:
    with pytest.raises(UserError, match="--url"):
        show_once(FleetClient(url, None), terminal())


def test_a_key_that_no_header_can_hold() -> None:
    with pytest.raises(UserError, match="QUANTFLEET_API_KEY") as caught:
        FleetClient("http://127.0.0.1:8000", "schlüssel")
    assert "schl" not in str(caught.value)


def test_it_asks_on_when_the_fleet_goes_away(fleet: Fleet) -> None:
    """A 503, and then the fleet again; the last it said stays on the screen."""
    gone = JSONResponse({"status": "starting"}, status_code=503)
    fleet.answers = [JSONResponse(STATE), gone, JSONResponse(STATE | {"in_flight": 77})]
    console, shown = terminal(), []

    def wait(period_s: float) -> None:
        shown.append(written(console))
        if len(shown) == 4:
            raise KeyboardInterrupt
        time.sleep(period_s)

    show(FleetClient(fleet.url, KEY), console, period_s=0.01, wait=wait)
    frames = [later[len(earlier) :] for earlier, later in pairwise(shown)]
    assert "asking on: it answered 503" in frames[0]
    assert "2 in flight" in frames[0]
    assert "77 in flight" in frames[1]
    assert "asking on" not in frames[1]
    assert written(console).endswith("\x1b[?25h\x1b[?1049l"), "cursor and screen are as they were"


def test_no_terminal_no_live_view(fleet: Fleet) -> None:
    with pytest.raises(UserError, match="--once"):
        show(FleetClient(fleet.url, KEY), Console(file=io.StringIO()), period_s=1.0)


def test_the_command_says_where_no_fleet_answers() -> None:
    root = Path(__file__).parents[2]
    command = [sys.executable, "-m", "quantfleet", "top", "--once", "--url", f"http://127.0.0.1:{free_ports(1)[0]}"]
    environment = os.environ | {"QUANTFLEET_API_KEY": "qf-secret"}
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert "no fleet answers (" in line
    assert "quantfleet serve" in line
    assert "secret" not in line
