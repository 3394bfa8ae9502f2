"""The image: its Dockerfile is sound, and what it copies and the wheel needs is there to be copied."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from serve_app.ray_settings import host_environment

ROOT = Path(__file__).parents[2]
DOCKERFILE = ROOT / "infra" / "docker" / "Dockerfile"
HADOLINT = Path(sys.executable).with_name("hadolint")


@pytest.mark.skipif(not HADOLINT.exists(), reason="hadolint is not installed")
def test_hadolint_finds_no_mistake() -> None:
    found = subprocess.run([HADOLINT, DOCKERFILE], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout


def test_the_context_holds_what_the_wheel_is_made_of() -> None:
    allowed = {
        line[1:] for line in DOCKERFILE.with_name("Dockerfile.dockerignore").read_text().split() if line[0] == "!"
    }
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    needed = {*wheel["packages"], *wheel["force-include"], "pyproject.toml", "README.md", "constraints.txt"}
    assert all((ROOT / path).exists() for path in needed | allowed)
    assert {path for path in needed if not any(Path(path).is_relative_to(each) for each in allowed)} == set()


def test_the_image_runs_the_torch_that_is_pinned_and_no_root() -> None:
    text = DOCKERFILE.read_text()
    pinned = re.search(r"torch==([\d.]+)", (ROOT / "Makefile").read_text())
    assert pinned is not None
    assert f"torch=={pinned[1]}" in text
    assert re.findall(r"^USER (\S+)", text, re.MULTILINE) == ["1000"]


def test_ray_in_the_image_has_the_settings_of_a_fleet() -> None:
    text = DOCKERFILE.read_text()
    said = re.search(r"^ENV (RAY_(?:.*\\\n)*.*)", text, re.MULTILINE)
    assert said is not None
    settings = dict(pair.split("=", 1) for pair in said[1].replace("\\\n", " ").split())
    wrapper = re.search(r"ray-env --folder (\S+)", text)
    assert wrapper is not None
    assert settings == host_environment(Path(wrapper[1]) / "haproxy-without-splice")
