"""The fleet of this folder's tests: `quantfleet serve` as a user starts it, once, with the embedded model."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import pytest

ROOT = Path(__file__).parents[2]
START_TIMEOUT_S = 240.0
"""Some 20 s on two quiet cores, with profiles measured and kernels compiled some minutes more, once."""

FLEET_YAML = """
model: {name: smollm2-135m, source: embedded:smollm2-135m}
engine: {max_context: 1024, kv_capacity_tokens: 4096}
slo_classes:
  interactive: {ttft_ms: 5000, tpot_ms: 1000, min_quality: 0.5, fallback: degrade}
  standard: {min_quality: 0.5, fallback: queue, deadline_s: 60}
  best: {min_quality: 1.0, fallback: queue, deadline_s: 60}
default_class: standard
http: {port: 0}
"""


@dataclass
class Fleet:
    """A running `quantfleet serve`."""

    process: subprocess.Popen[str]
    base_url: str
    log: Path

    def client(self, timeout_s: float = 60.0) -> openai.OpenAI:
        return openai.OpenAI(base_url=self.base_url, api_key="any", timeout=timeout_s, max_retries=0)

    def get(self, path: str) -> httpx.Response:
        return httpx.get(self.base_url.removesuffix("/v1") + path, timeout=10)

    def replica(self, variant: str) -> dict[str, Any]:
        """The first of a variant, as /v1/fleet tells it."""
        variants = {entry["name"]: entry["replicas"] for entry in self.get("/v1/fleet").json()["variants"]}
        return dict(variants[variant][0]) if variants[variant] else {}

    def engines(self) -> dict[str, psutil.Process]:
        """The engine processes by variant; their parent is a replica, whose name tells it."""
        found = {}
        for process in psutil.Process(self.process.pid).children(recursive=True):
            if "engine.process_main" in process.cmdline():
                found[process.parent().name().rpartition(":")[2]] = process
        return found

    def wait_healthy(self, timeout_s: float = 90.0) -> None:
        self.eventually(lambda: self.get("/healthz").status_code == 200, timeout_s)

    @staticmethod
    def eventually(condition: Callable[[], bool], timeout_s: float) -> None:
        deadline_s = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline_s, f"it did not happen within {timeout_s} s"
            time.sleep(0.05)


@pytest.fixture(scope="session")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    with served(FLEET_YAML, tmp_path_factory.mktemp("fleet")) as running:
        yield running


@pytest.fixture(scope="session")
def serve_of() -> Callable[..., AbstractContextManager[Fleet]]:
    """For a test with a fleet of its own."""
    return served


@contextmanager
def served(fleet_yaml: str, folder: Path, environment: Mapping[str, str] | None = None) -> Iterator[Fleet]:
    batches = f"batches: {{folder: {folder / 'batches'}}}\n"  # of these tests alone, not the user's
    (folder / "fleet.yaml").write_text(fleet_yaml if "batches:" in fleet_yaml else fleet_yaml + batches)
    log = folder / "serve.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "quantfleet", "serve", str(folder / "fleet.yaml")],
            cwd=ROOT,
            env=os.environ | dict(environment or {}),
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            # As a shell's background job: it must end by SIGINT all the same.
            preexec_fn=_ignore_sigint,
            text=True,
        )
    try:
        yield Fleet(process=process, base_url=_base_url(process, log), log=log)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(30)


def _ignore_sigint() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _base_url(process: subprocess.Popen[str], log: Path) -> str:
    deadline_s = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline_s and process.poll() is None:
        found = re.search(r'base_url="([^"]+)"', log.read_text())
        if found:
            return found.group(1)
        time.sleep(0.2)
    raise AssertionError(f"the fleet did not start:\n{log.read_text()}")


@pytest.fixture
def client(fleet: Fleet) -> openai.OpenAI:
    return fleet.client()
