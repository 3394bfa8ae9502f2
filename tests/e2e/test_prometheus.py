"""A real Prometheus scrapes a real fleet and a batch job: every expression of every rule and panel returns data."""

from __future__ import annotations

import json
import math
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from serve_app.dashboards.boards import expressions
from serve_app.ray_settings import fleet_environment
from tests.e2e.conftest import ROOT

pytestmark = [
    pytest.mark.ray,
    pytest.mark.skipif(shutil.which("prometheus") is None, reason="prometheus (Debian has it) is not here"),
]
INFRA = ROOT / "infra" / "prometheus"
FLEET_YAML = """
model: {name: smollm2-135m, source: embedded:smollm2-135m}
variants: {int8: {method: int8, quality: 0.97}, nf4: {method: nf4, quality: 0.8}}
engine: {max_context: 1024, kv_capacity_tokens: 8192, num_threads: 1}
slo_classes:
  chat: {ttft_ms: 5000, tpot_ms: 1000, fallback: degrade}
  exact: {ttft_ms: 5000, min_quality: 0.9, fallback: queue, deadline_s: 60}
default_class: chat
autoscaling: {replicas: {int8: {min: 1, max: 2}, nf4: {min: 1, max: 1}}, interval_s: 1}
http: {port: 0}
"""
NUM_ROWS = 60
SCRAPED_TIMEOUT_S = 60.0
"""Ray's agents gather every 10 s, and a rate takes two samples."""


@contextmanager
def ray_head(folder: Path) -> Iterator[dict[str, str]]:
    """A Ray as `quantfleet serve` starts one; the environment of its drivers."""
    settings = fleet_environment(folder, 2) | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    head = subprocess.Popen(
        [sys.executable, "-m", "serve_app.ray_head", str(folder), "4", "0"],
        cwd=ROOT,
        env=os.environ | settings,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
        text=True,
    )
    assert head.stdin is not None
    assert head.stdout is not None
    try:
        yield settings | {"RAY_ADDRESS": head.stdout.readline().strip()}
    finally:
        head.stdin.close()  # it ends Ray then
        head.wait(30)


@contextmanager
def prometheus(folder: Path, target: str) -> Iterator[str]:
    """The project's configuration and rules, with seconds for their minutes; the server's address."""
    shutil.copytree(INFRA / "rules", folder / "rules")
    for path in (folder / "rules").glob("*.yml"):
        path.write_text(re.sub("interval: .*", "interval: 1s", path.read_text()))
    config = (INFRA / "prometheus.yml").read_text().replace("127.0.0.1:9464", target)
    (folder / "prometheus.yml").write_text(re.sub("scrape_interval: .*", "scrape_interval: 1s", config))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    command = ["prometheus", f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data"]
    with (folder / "log").open("w") as log:
        server = subprocess.Popen([*command, f"--web.listen-address={address}"], stdout=log, stderr=log)
    try:
        yield f"http://{address}"
    finally:
        server.terminate()
        server.wait(10)


def rule_expressions() -> dict[str, str]:
    """By rule; of alerts without what they compare with, so that a quiet fleet has data too."""
    rules = [
        rule
        for path in (INFRA / "rules").glob("*.yml")
        for group in yaml.safe_load(path.read_text())["groups"]
        for rule in group["rules"]
    ]
    found = {rule["record"]: rule["expr"] for rule in rules if "record" in rule}
    for rule in rules:
        if "alert" in rule:
            sides = re.split(r"\b(?:and|or|unless on \(\w+\))\s", rule["expr"])
            for number, side in enumerate(sides):
                found[f"{rule['alert']} {number}"] = re.sub(r"[<>]=? *[\d.]+( \* [\d.]+)?", "", side).strip()
    return found


def has_data(server: str, expression: str) -> bool:
    """A number at least: quantiles of what was never observed are none."""
    answer = httpx.get(f"{server}/api/v1/query", params={"query": expression}, timeout=10).json()
    assert answer["status"] == "success", (expression, answer)
    result = answer["data"]["result"]
    return any(math.isfinite(float(sample["value"][1])) for sample in result)


def test_every_expression_returns_data(serve_of: Any, tmp_path: Path) -> None:
    wanted = rule_expressions() | {f"{each.board}, {each.panel}: {each.expr}": each.expr for each in expressions()}
    assert len(wanted) > 30
    with ExitStack() as stack:
        ray_folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="qf")))
        environment = stack.enter_context(ray_head(ray_folder))
        fleet = stack.enter_context(serve_of(FLEET_YAML, tmp_path, environment))
        url = re.search(r"Metrics for Prometheus: http://(\S+)/metrics", fleet.log.read_text())
        assert url is not None
        (tmp_path / "prometheus").mkdir()
        server = stack.enter_context(prometheus(tmp_path / "prometheus", url[1]))
        job = started_job(tmp_path, environment)
        missing = dict(wanted)
        deadline_s = time.monotonic() + SCRAPED_TIMEOUT_S
        while missing and time.monotonic() < deadline_s:
            some_traffic(fleet)
            missing = {name: expr for name, expr in missing.items() if not has_data(server, expr)}
        job.terminate()
        job.wait(60)
    assert missing == {}


def started_job(folder: Path, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    rows = [json.dumps({"prompt": f"Tell me story {number}."}) for number in range(NUM_ROWS)]
    (folder / "rows.jsonl").write_text("\n".join(rows))
    command = [sys.executable, "-m", "quantfleet", "generate", str(folder / "rows.jsonl"), "-o", str(folder / "out")]
    command += ["-c", str(folder / "fleet.yaml"), "--variant", "nf4", "--max-tokens", "64", "--batch-size", "4"]
    with (folder / "job.log").open("w") as log:
        return subprocess.Popen(command, cwd=ROOT, env=os.environ | environment, stdout=log, stderr=log)


def some_traffic(fleet: Any) -> None:
    """Every class, the router's choice and a variant by name, with a prefix that is known from the second time on."""
    client = fleet.client()
    for model, slo in (("", "chat"), ("", "exact"), (":nf4", "chat"), (":int8", "chat"), ("", "background")):
        client.completions.create(
            model=f"smollm2-135m{model}",
            prompt="Once upon a time " * 8,
            max_tokens=4,
            extra_body={"slo": slo, "ignore_eos": True},
        )
