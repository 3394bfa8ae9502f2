"""What a job's processes hold at most does not depend on how many rows it has."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

import psutil
import pytest

from tests.batch_jobs.job_runs import JobRuns, Process, relatives

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(3600)]

KINDS = {"raylet/raylet": "raylet", "gcs_server": "gcs", "engine.process_main": "engine", "ray::": "workers"}
"""The first that a command line holds."""


def test_a_million_rows_take_the_memory_of_ten_thousand(tiny_checkpoint: Path, tmp_path: Path) -> None:
    peaks = [peaks_mib(tmp_path / str(num_rows), tiny_checkpoint, num_rows) for num_rows in (10_000, 1_000_000)]
    few, many = peaks
    print(f"\nMiB at most: {few} with 10,000 rows, {many} with 1,000,000")
    assert few.keys() >= {"driver", "workers", "engine", "raylet", "plasma"}
    assert {kind: mib for kind, mib in many.items() if mib > 1.2 * few[kind]} == {}


def peaks_mib(folder: Path, checkpoint: Path, num_rows: int) -> dict[str, int]:
    """Of one whole job, a token a row."""
    folder.mkdir()
    config = folder / "fleet.yaml"
    config.write_text(f"model: {{source: {checkpoint}}}\nvariants: {{bf16: {{method: none}}}}\n")
    runs = JobRuns(
        folder=folder,
        num_rows=num_rows,
        options=("--config", str(config), "--max-tokens", "1"),
        line="{}",
        # Workers as willing as whatever else runs here: Ray's are nice by 15.
        environment={"RAY_ADDRESS": "", "RAY_worker_niceness": "0"},
    )
    peaks: dict[str, int] = {}
    started_s = time.monotonic()
    process = runs.start()
    while process.poll() is None:
        for kind, size in resident_bytes(process).items():
            peaks[kind] = max(peaks.get(kind, 0), size >> 20)
        time.sleep(0.5)
    assert process.returncode == 0, runs.told()
    print(f"{num_rows} rows in {time.monotonic() - started_s:.0f} s; {peaks}")
    runs.check()
    return peaks


def resident_bytes(process: Process) -> dict[str, int]:
    """Anonymous memory of the driver, of all workers together, of the engine and of Ray's own processes; and plasma,
    the shared memory that rows travel in."""
    sizes: dict[str, int] = {}
    try:
        family = relatives(process)
    except psutil.NoSuchProcess:
        return sizes
    for pid, kind in [(process.pid, "driver"), *((member.pid, _kind(member)) for member in family)]:
        status = _status(pid)
        sizes[kind] = sizes.get(kind, 0) + status.get("RssAnon", 0)
        if kind == "raylet":
            sizes["plasma"] = sizes.get("plasma", 0) + status.get("RssShmem", 0)
    return sizes


def _kind(process: psutil.Process) -> str:
    try:
        command = " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return "others"
    return next((kind for part, kind in KINDS.items() if part in command), "others")


def _status(pid: int) -> Mapping[str, int]:
    """Sizes in /proc/PID/status, in bytes; none of a process that is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return {}
    fields = (line.split() for line in lines)
    return {field[0].rstrip(":"): int(field[1]) * 1024 for field in fields if field[-1] == "kB"}
