"""What is checked before Ray starts, and how signals end a fleet; the fleet itself is in tests/e2e."""

from __future__ import annotations

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cluster.config import FleetConfig
from cluster.errors import UserError
from serve_app.cli import usage_example
from serve_app.deploy import base_url, ended_by_signals, fleet, with_free_port
from serve_app.ray_settings import fleet_environment, free_ports


def config_at(config: FleetConfig, port: int) -> FleetConfig:
    return config.at("127.0.0.1", port)


def test_a_port_in_use_is_the_users_to_mend(config: FleetConfig) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=rf"127\.0\.0\.1:{port}.*--port"), fleet(config_at(config, port)):
            pass


def test_port_zero_is_any_free_one(config: FleetConfig) -> None:
    assert with_free_port(config_at(config, 0)).http.port > 0


def test_a_missing_model_and_missing_keys_are_told(config: FleetConfig, tmp_path: Path) -> None:
    (port,) = free_ports(1)
    for change, word in (
        ({"model": {"source": str(tmp_path / "nothing")}}, "model.source"),
        ({"auth": {"keys_file": str(tmp_path / "keys.jsonl")}}, "keys create"),
    ):
        broken = FleetConfig.of(config.model_dump(by_alias=True) | change).at(None, port)
        with pytest.raises(UserError, match=word), fleet(broken):
            pass


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_block_also_where_it_was_ignored(number: signal.Signals) -> None:
    before = signal.signal(number, signal.SIG_IGN)
    try:
        with pytest.raises(SystemExit) as caught, ended_by_signals():
            os.kill(os.getpid(), number)
        assert caught.value.code == 128 + number
        assert signal.getsignal(number) is signal.SIG_IGN
    finally:
        signal.signal(number, before)


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:80/v1"),
        ("0.0.0.0", "http://127.0.0.1:80/v1"),
        ("::", "http://[::1]:80/v1"),
        ("::1", "http://[::1]:80/v1"),
        ("example.org", "http://example.org:80/v1"),
    ],
)
def test_the_url_is_one_that_a_client_here_can_use(host: str, url: str) -> None:
    assert base_url(host, 80) == url


@pytest.mark.parametrize("needs_key", [True, False])
def test_the_printed_example_is_well_formed(needs_key: bool) -> None:
    text = usage_example("http://127.0.0.1:8000/v1", "small", needs_key)
    curl, _, snippet = text.strip().partition("\n\n")
    words = shlex.split(curl)
    assert json.loads(words[words.index("-d") + 1])["model"] == "small"
    assert ("Authorization: Bearer YOUR_KEY" in words) == needs_key
    compile(snippet.partition("\n\nCtrl-C")[0], "snippet", "exec")


def test_every_fleet_has_a_token_ports_and_files_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    first, second = fleet_environment(tmp_path, 2), fleet_environment(tmp_path, 2)
    assert first["RAY_AUTH_MODE"] == "token"
    assert first["RAY_AUTH_TOKEN"] != second["RAY_AUTH_TOKEN"]
    assert first["RAY_SERVE_HAPROXY_METRICS_PORT"] != first["RAY_SERVE_HAPROXY_STATS_PORT"]
    files = [value for name, value in first.items() if name.startswith("RAY_SERVE_HAPROXY") and "/" in value]
    assert all(value.startswith(str(tmp_path)) for value in files)


def test_the_proxy_that_ray_is_given_runs(tmp_path: Path) -> None:
    proxy = fleet_environment(tmp_path, 2)["RAY_SERVE_HAPROXY_BINARY_PATH"]
    said = subprocess.run([proxy, "-v"], capture_output=True, text=True, check=True).stdout
    assert "HAProxy" in said


def test_authentication_is_the_users_where_they_chose(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    settings: dict[str, Any] = fleet_environment(tmp_path, 2)
    assert settings["RAY_AUTH_MODE"] == "disabled"
    assert "RAY_AUTH_TOKEN" not in settings


def test_what_serve_does_before_rays_settings_are_made_imports_no_ray() -> None:
    """Ray reads them when it is imported: one that was imported before listens on the host's own address."""
    check = "import sys, quantfleet, serve_app.deploy; sys.exit('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0
