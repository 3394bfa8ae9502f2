"""A trace sent to a running fleet is summed up as a simulated one is."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from autoscaling.simulator.summary import read_summary
from tests.e2e.conftest import FLEET_YAML, ROOT

pytestmark = pytest.mark.ray

TRACE = "TIMESTAMP,ContextTokens,GeneratedTokens\n" + "".join(
    f"2024-05-10 00:00:0{second}.{tenth}+00:00,{20 + second},{4 + tenth}\n" for second in range(2) for tenth in (1, 6)
)
TOO_LONG = "2024-05-10 00:00:02.5+00:00,2000,10\n"


def replay(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    (folder / "fleet.yaml").write_text(FLEET_YAML)
    command = [sys.executable, "-m", "quantfleet", "bench", "replay", str(folder / "fleet.yaml"), *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)


def test_every_request_of_a_trace_is_told_of(fleet: Any, tmp_path: Path) -> None:
    (tmp_path / "trace.csv").write_text(TRACE + TOO_LONG)
    trace, output = str(tmp_path / "trace.csv"), tmp_path / "run"
    done = replay(tmp_path, "--url", fleet.base_url, "--trace", trace, "--classes", "best=1", "-o", str(output))
    assert done.returncode == 0, done.stderr
    summary = read_summary(output)
    best = summary.classes["best"]
    assert (best.offered, best.met, best.too_long, best.refused) == (5, 4, 1, 1)
    assert best.answered_by == {"bf16": 4}
    assert best.ttft_ms.p50 is not None
    assert 1 < best.ttft_ms.p50 < 60_000
    assert summary.longest_tokens == 2010
    assert summary.replicas[0].running == {"bf16": 1, "int8": 1, "nf4": 1}


def test_no_fleet_there_is_told_in_a_line(tmp_path: Path) -> None:
    (tmp_path / "trace.csv").write_text(TRACE)
    options = ("--trace", str(tmp_path / "trace.csv"), "-o", str(tmp_path / "run"))
    done = replay(tmp_path, "--url", "http://127.0.0.1:9/v1", *options)
    assert done.returncode == 2
    assert "--url http://127.0.0.1:9/v1: no fleet answers there" in done.stderr
    assert not (tmp_path / "run").exists()
