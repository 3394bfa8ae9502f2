"""A running fleet as a context: checked, Ray ready, deployed, drained and ended; it answers no request itself."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import httpx
from rich.console import Console

from cluster.config import FleetConfig
from cluster.errors import UserError
from serve_app.blueprint import Blueprint
from serve_app.ray_cluster import joined_ray, metrics_urls
from serve_app.ray_settings import free_ports
from serve_app.scaled_app import deploy_scaled
from serve_app.scaling_terms import decision_log_path, serve_policy
from serve_app.span_export import require_exporter

APP_NAME = "quantfleet"
DRAIN_TIMEOUT_S = 15.0
HEALTHY_TIMEOUT_S = 60.0
CALL_TIMEOUT_S = 3.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningFleet:
    config: FleetConfig
    base_url: str
    """What an OpenAI client wants: it ends in /v1."""
    decision_log: Path | None = None
    """Of an autoscaled fleet, on the node of Serve's controller."""
    metrics: tuple[str, ...] = ()
    """Addresses for Prometheus, one a node."""


@contextmanager
def fleet(config: FleetConfig, *, console: Console | None = None) -> Iterator[RunningFleet]:
    """Ready to serve inside, ended outside: what is in flight is drained, and no process is left.

    One SIGINT or SIGTERM ends it from anywhere inside, with SystemExit; while it ends, further ones are ignored.
    """
    console = console or Console(stderr=True)
    with ExitStack() as stack:
        stack.enter_context(ended_by_signals())
        config = with_free_port(config)
        blueprint = _blueprint(config, console)
        with _stage(console, "starting Ray"):
            stack.enter_context(joined_ray(config.metrics.port))
        stack.callback(_drain, console)
        log_path = decision_log_path(blueprint) if config.is_autoscaled else None
        _deploy(blueprint, log_path, console)
        url = base_url(config.http.host, config.http.port)
        running = RunningFleet(config=config, base_url=url, decision_log=log_path, metrics=metrics_urls())
        _wait_healthy(running, console)
        yield running


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """Also where SIGINT was inherited as ignored, as a shell's background jobs inherit it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, _: FrameType | None) -> None:
        for ending in (signal.SIGINT, signal.SIGTERM):
            signal.signal(ending, signal.SIG_IGN)
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _stage(console: Console, what: str) -> Iterator[None]:
    """Shown while it works, and how long it took."""
    started_s = time.monotonic()
    with console.status(what):
        yield
    console.print(f"[green]✓[/green] {what} [dim]{time.monotonic() - started_s:.1f} s[/dim]")


def with_free_port(config: FleetConfig) -> FleetConfig:
    """UserError for a port in use; port 0 is any that is free."""
    host, port = config.http.host, config.http.port
    if port == 0:
        return config.at(None, free_ports(1)[0])
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # past connections in TIME_WAIT are no obstacle
        try:
            probe.bind((host, port))
        except OSError as error:
            raise UserError(
                f"http.port: cannot listen on {host}:{port} ({error.strerror}); give another with --port"
            ) from None
    return config


def _blueprint(config: FleetConfig, console: Console) -> Blueprint:
    """With a profile of every variant, measured where there is none yet."""
    require_exporter(config.tracing)
    with _stage(console, "model and placement"):
        blueprint = Blueprint.of(config)
    for name in blueprint.variants:
        with _stage(console, f"speed profile of {name}"):
            blueprint = blueprint.measured(name)
    return blueprint


def _deploy(blueprint: Blueprint, log_path: Path | None, console: Console) -> None:
    from ray import serve

    from serve_app.app import application

    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    with _stage(console, f"starting replicas: {', '.join(blueprint.variants)}"):
        http = blueprint.config.http
        serve.start(http_options={"host": http.host, "port": http.port})
        if blueprint.config.is_autoscaled:
            deploy_scaled(blueprint, serve_policy(blueprint, log_path), APP_NAME)
        else:
            serve.run(application(blueprint), name=APP_NAME, route_prefix="/")


def _wait_healthy(running: RunningFleet, console: Console) -> None:
    url = running.base_url.removesuffix("/v1") + "/healthz"
    deadline_s = time.monotonic() + HEALTHY_TIMEOUT_S
    with _stage(console, "waiting for /healthz"):
        while time.monotonic() < deadline_s:
            with suppress(httpx.HTTPError):
                if httpx.get(url, timeout=CALL_TIMEOUT_S).status_code == 200:
                    return
            time.sleep(0.1)
    raise RuntimeError(f"{url} is not healthy after {HEALTHY_TIMEOUT_S:.0f} s")


def base_url(host: str, port: int) -> str:
    """As a client on this host reaches it."""
    reachable = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://{f'[{reachable}]' if ':' in reachable else reachable}:{port}/v1"


def _drain(console: Console) -> None:
    """No new requests; what runs has DRAIN_TIMEOUT_S to end, then it is told why it ends."""
    with suppress(Exception), _stage(console, "draining"):
        _ask("drain")
        deadline_s = time.monotonic() + DRAIN_TIMEOUT_S
        while sum(_ask("in_flight")) and time.monotonic() < deadline_s:
            time.sleep(0.1)
        if sum(_ask("in_flight")):
            _ask("end_all")
            time.sleep(0.3)  # the last event's way to the client
    if "RAY_ADDRESS" in os.environ:
        from ray import serve

        from serve_app.decision_board import remove_board

        with suppress(Exception):
            serve.delete(APP_NAME)
            remove_board()


def _ask(method: str) -> list[Any]:
    """Of every ingress."""
    from ray import serve

    handle = serve.get_app_handle(APP_NAME)
    return handle.broadcast(method).results(timeout_s=CALL_TIMEOUT_S)
