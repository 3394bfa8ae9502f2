"""cluster.yaml is what `ray up` takes, and its hosts are told what a fleet's Ray needs."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

CLUSTER = Path(__file__).parents[2] / "infra" / "ray" / "cluster.yaml"


def test_ray_up_takes_it() -> None:
    config = prepare_config(yaml.safe_load(CLUSTER.read_text()))
    validate_config(config)
    workers = config["available_node_types"]["local.cluster.node"]
    assert workers["min_workers"] == workers["max_workers"] == len(config["provider"]["worker_ips"])


@pytest.mark.parametrize("key", ["setup_commands", "head_start_ray_commands", "worker_start_ray_commands"])
def test_a_shell_reads_its_commands(key: str) -> None:
    for command in yaml.safe_load(CLUSTER.read_text())[key]:
        assert subprocess.run(["bash", "-n", "-c", command], check=False).returncode == 0, command


@pytest.mark.parametrize("key", ["head_start_ray_commands", "worker_start_ray_commands"])
def test_every_host_has_the_settings_the_token_and_a_port_for_metrics(key: str) -> None:
    words = shlex.split(yaml.safe_load(CLUSTER.read_text())[key][-1])
    assert any("quantfleet ray-env" in word for word in words)
    assert {"RAY_AUTH_MODE=token", "--metrics-export-port=9464"} <= set(words)
