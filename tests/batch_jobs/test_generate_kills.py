"""One job killed at twenty random moments, wherever it hurts: in the end each row is there once."""

from __future__ import annotations

import random
import time
from pathlib import Path

import psutil
import pytest

from tests.batch_jobs.job_runs import ACTOR, ENGINE, RAYLET, JobRuns, Process, is_running, named, relatives, wait_for

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(3600)]

DRIVER = "driver"
LOCAL_RAY = {"RAY_ADDRESS": ""}
OPTIONS = ("--variant", "int8", "--max-tokens", "8", "--batch-size", "16")
"""Slices of eight rows: so that a kill hits many of them at every stage of their way."""


def test_twenty_kills_of_drivers_raylets_actors_and_engines_cost_no_row(checkpoint: Path, tmp_path: Path) -> None:
    runs = JobRuns(folder=tmp_path, num_rows=2000, rows_per_file=4, options=OPTIONS, environment=LOCAL_RAY)
    kills = Kills(runs, seed=0)
    for victim in kills.victims(20):
        kills.kill(victim)
    kills.finish()


class Kills:
    """A job, and the random moments at which something of it is killed; what it survives it goes on after."""

    def __init__(self, runs: JobRuns, seed: int) -> None:
        self._runs = runs
        self._draw = random.Random(seed)
        self._process: Process | None = None

    def victims(self, count: int) -> list[str]:
        each = [DRIVER, RAYLET, ACTOR, ENGINE]
        victims = (each * count)[:count]
        self._draw.shuffle(victims)
        return victims

    def kill(self, victim: str) -> None:
        process = self._process = self._process or self._runs.start()
        self._wait_for_moment(process, victim)
        family = relatives(process)
        if victim == DRIVER:
            process.kill()
        else:
            found = named(family, victim)
            assert found is not None
            found.kill()
        if victim in (DRIVER, RAYLET):
            assert process.wait(180) != 0
            wait_for(lambda: not any(is_running(member) for member in family), 90)
            self._process = None
        assert not any(row["error"] for row in self._runs.rows())

    def finish(self) -> None:
        process = self._process or self._runs.start()
        assert process.wait(1800) == 0, self._runs.told()
        self._runs.check()

    def _wait_for_moment(self, process: Process, victim: str) -> None:
        """Up to 60 more rows, or 20 s, so that kills fall on starts and restarts too; but the victim must live."""
        if self._draw.random() < 0.5:
            files = self._runs.num_files() + self._draw.uniform(0, 60) / self._runs.rows_per_file
            wait_for(lambda: process.poll() is not None or self._runs.num_files() >= files, 180)
        else:
            time.sleep(self._draw.uniform(0, 20))
        wait_for(lambda: process.poll() is not None or victim == DRIVER or _has(process, victim), 180)
        assert process.poll() is None, f"it ended by itself: {self._runs.told()}"


def _has(process: Process, victim: str) -> bool:
    try:
        return named(relatives(process), victim) is not None
    except psutil.NoSuchProcess:
        return False
