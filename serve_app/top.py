"""`quantfleet top`: asks a fleet over HTTP once a second and shows what it says; it knows no Ray and draws nothing."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import httpx
from rich.console import Console
from rich.live import Live

from cluster.errors import UserError
from serve_app.top_frame import frame, with_decision

KEY_VARIABLE = "QUANTFLEET_API_KEY"
CALL_TIMEOUT_S = 3.0
KEYS = frozenset({"model", "in_flight", "background_in_flight", "queued", "variants", "slo_classes", "scaling"})


class Unanswered(Exception):  # noqa: N818  (what happened, and not always an error)
    """The fleet did not say how it is; the text is why, in a few words."""


class FleetClient:
    def __init__(self, url: str, key: str | None) -> None:
        """`url` of a fleet, with or without /v1. UserError for what is none."""
        self.url = url.rstrip("/").removesuffix("/v1")
        if not self.url.startswith(("http://", "https://")):
            raise UserError(f"--url {url}: not an http address; one is http://127.0.0.1:8000")
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        try:
            self._http = httpx.Client(base_url=self.url, headers=headers, timeout=CALL_TIMEOUT_S)
        except (httpx.InvalidURL, UnicodeEncodeError) as error:
            raise UserError(f"--url {url} or {KEY_VARIABLE}: not to be sent over HTTP ({error})") from None

    def state(self) -> dict[str, Any]:
        """Of GET /v1/fleet. Unanswered where it fails for now; UserError for a wrong key or another server."""
        try:
            response = self._http.get("/v1/fleet")
        except httpx.InvalidURL as error:
            raise UserError(f"--url {self.url}: {error}") from None
        except httpx.TimeoutException:
            raise Unanswered(f"no answer within {CALL_TIMEOUT_S:.0f} s") from None
        except httpx.HTTPError as error:
            raise Unanswered(str(error) or type(error).__name__) from None
        if response.status_code in (401, 403):
            raise UserError(
                f"{self.url}: the fleet wants an API key and {self._said()};"
                f" make one with `quantfleet keys create` and set {KEY_VARIABLE}"
            )
        if response.status_code >= 500:
            raise Unanswered(f"it answered {response.status_code}")
        with suppress(ValueError):
            state = response.json()
            if response.status_code == 200 and isinstance(state, dict) and state.keys() >= KEYS:
                return state
        raise UserError(
            f"{self.url}: what answers there is no fleet (GET /v1/fleet: {response.status_code}); see --url"
        )

    def first_state(self) -> dict[str, Any]:
        """UserError where no fleet answers."""
        try:
            return self.state()
        except Unanswered as why:
            raise UserError(
                f"{self.url}: no fleet answers ({why}); start one with `quantfleet serve`, or name it with --url"
            ) from None

    def _said(self) -> str:
        return f"refuses the one in {KEY_VARIABLE}" if "Authorization" in self._http.headers else "was given none"


def show_once(client: FleetClient, console: Console) -> None:
    state = client.first_state()
    console.print(frame(state, with_decision((), state), height=console.height))


def show(client: FleetClient, console: Console, *, period_s: float, wait: Callable[[float], None] = time.sleep) -> None:
    """Until Ctrl-C; UserError where there is no terminal.

    A fleet that answered once is asked on when it goes away, and the last it said stays.
    """
    if not console.is_terminal:
        raise UserError("quantfleet top: its output is no terminal; --once prints one frame anywhere")
    frames = _frames(client, console)
    with suppress(KeyboardInterrupt), Live(next(frames), console=console, screen=True, auto_refresh=False) as live:
        while True:
            wait(period_s)
            live.update(next(frames), refresh=True)


def _frames(client: FleetClient, console: Console) -> Iterator[Any]:
    state = client.first_state()
    decisions = with_decision((), state)
    heard_s, notice = time.monotonic(), ""
    while True:
        yield frame(state, decisions, height=console.height, notice=notice)
        try:
            state = client.state()
        except (Unanswered, UserError) as why:
            notice = f"no news for {time.monotonic() - heard_s:.0f} s, asking on: {why}"
        else:
            decisions = with_decision(decisions, state)
            heard_s, notice = time.monotonic(), ""


def api_key() -> str | None:
    return os.environ.get(KEY_VARIABLE) or None
