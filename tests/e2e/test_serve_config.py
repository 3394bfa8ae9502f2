"""Ray as a pod or a bare host runs it, and the chart's Serve configuration handed to its dashboard, as KubeRay does."""

from __future__ import annotations

import json
import os
import re
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import psutil
import pytest
import yaml

from autoscaling.decision_log import entries
from serve_app.auth import create_key
from serve_app.ray_settings import free_ports
from tests.infra.test_kubernetes import serve_config

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(400)]
BIN = Path(sys.executable).parent


@pytest.fixture
def environment() -> dict[str, str]:
    """What `quantfleet ray-env` says, and that this Ray is on loopback, where others may be."""
    told = subprocess.run([BIN / "quantfleet", "ray-env"], capture_output=True, text=True, check=True).stdout
    settings = dict(re.findall(r"^export (\w+)=(\S+)$", told, re.MULTILINE))
    assert "RAY_SERVE_ENABLE_HA_PROXY" in settings
    own = {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    return {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"} | settings | own


@pytest.fixture
def dashboard(environment: dict[str, str]) -> Iterator[str]:
    gcs, port = free_ports(2)
    with tempfile.TemporaryDirectory(prefix="qf", dir="/tmp") as folder:
        command = [BIN / "ray", "start", "--head", "--block", "--node-ip-address=127.0.0.1", f"--port={gcs}"]
        command += [f"--dashboard-port={port}", "--dashboard-host=127.0.0.1", f"--temp-dir={folder}"]
        command += ["--num-cpus=2", "--object-store-memory=268435456", "--disable-usage-stats"]
        with open(Path(folder) / "start.log", "w") as log:
            head = subprocess.Popen(command, env=environment, start_new_session=True, stdout=log, stderr=log)
            try:
                yield f"http://127.0.0.1:{port}"
            finally:
                family = psutil.Process(head.pid).children(recursive=True)
                head.send_signal(signal.SIGTERM)
                head.wait(60)
                _, left = psutil.wait_procs(family, timeout=20)
                for process in left:
                    process.kill()
                assert not left


def serve(verb: str, dashboard: str, environment: dict[str, str], *arguments: str) -> str:
    command = [BIN / "serve", verb, "--address", dashboard, *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def is_running(dashboard: str, environment: dict[str, str]) -> bool:
    application = yaml.safe_load(serve("status", dashboard, environment))["applications"].get("quantfleet", {})
    assert application.get("status") != "DEPLOY_FAILED", application
    return application.get("status") == "RUNNING"


def wait_for(condition: Any, what: str) -> None:
    deadline_s = time.monotonic() + 180
    while not condition():
        assert time.monotonic() < deadline_s, what
        time.sleep(0.5)


def test_the_charts_configuration_serves_and_scales(
    tmp_path: Path, environment: dict[str, str], dashboard: str
) -> None:
    [port] = free_ports(1)
    key = create_key(tmp_path / "keys.jsonl", "test")
    fleet = {
        "model": {"name": "small", "source": "embedded:smollm2-135m"},
        "variants": {"bf16": {"method": "none"}, "int8": {"method": "int8", "quality": 0.97}},
        "engine": {"max_context": 512, "num_threads": 1, "kv_capacity_tokens": 4096},
        "autoscaling": {"replicas": {"bf16": {"min": 0, "max": 1}, "int8": {"min": 1, "max": 1}}}
        | {"interval_s": 2, "log": str(tmp_path / "decisions.jsonl")},
        "http": {"port": port},
        "auth": {"keys_file": str(tmp_path / "keys.jsonl")},
    }
    (tmp_path / "fleet.yaml").write_text(json.dumps(fleet))
    config = json.loads(json.dumps(serve_config()).replace("/etc/quantfleet/fleet.yaml", str(tmp_path / "fleet.yaml")))
    config["http_options"] = {"host": "127.0.0.1", "port": port}
    (tmp_path / "serve.yaml").write_text(yaml.safe_dump(config))

    wait_for(lambda: _answers(dashboard, environment), "the dashboard does not answer")
    serve("deploy", dashboard, environment, str(tmp_path / "serve.yaml"))
    wait_for(lambda: is_running(dashboard, environment), "the fleet does not run")

    with openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key=key, max_retries=0, timeout=120) as client:
        asked = {"prompt": "The sky is", "max_tokens": 4, "temperature": 0}
        assert client.completions.create(model="small:int8", **asked).usage.completion_tokens == 4
        # It runs no replica of bf16: only the policy of fleet.yaml wakes one.
        assert client.completions.create(model="small:bf16", **asked).usage.completion_tokens == 4
    assert any(entry.decision.replicas["bf16"] == 1 for entry in entries(tmp_path / "decisions.jsonl"))


def _answers(dashboard: str, environment: dict[str, str]) -> bool:
    done = subprocess.run([BIN / "serve", "status", "--address", dashboard], env=environment, capture_output=True)
    return done.returncode == 0
