"""A generation job as a user starts it from a shell, as often as a test ends it; it starts no Ray itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import psutil

ENGINE = "engine.process_main"
ACTOR = "MapBatches(RowGenerator)"
RAYLET = "raylet/raylet"
"""What the command lines of a job's processes begin with."""

Process = subprocess.Popen[bytes]


@dataclass(slots=True, kw_only=True)
class JobRuns:
    """One job over `num_rows` lines of text."""

    folder: Path
    num_rows: int
    options: tuple[str, ...]
    line: str = "Tell me story {}."
    rows_per_file: int = 1000
    prefix: tuple[str, ...] = ()
    """What the command is run by."""
    environment: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.folder.mkdir(exist_ok=True)
        self.input.write_text("".join(self.line.format(i) + "\n" for i in range(self.num_rows)))

    @property
    def input(self) -> Path:
        return self.folder / "in.txt"

    @property
    def out(self) -> Path:
        return self.folder / "out"

    def start(self) -> Process:
        command = [*self.prefix, sys.executable, "-m", "quantfleet", "generate", str(self.input), "-o", str(self.out)]
        command += ["--raw", "--rows-per-file", str(self.rows_per_file), *self.options]
        with (self.folder / "log").open("ab") as log:
            environment = os.environ | self.environment
            return subprocess.Popen(command, cwd=Path(__file__).parents[2], stdout=log, stderr=log, env=environment)

    def num_files(self) -> int:
        return len(list(self.out.glob("*.jsonl")))

    def rows(self) -> Iterator[dict[str, object]]:
        return (json.loads(line) for file in sorted(self.out.glob("*.jsonl")) for line in file.open())

    def check(self) -> None:
        """Each row is there once and whole, of one job, and nothing else lies about."""
        ids: list[object] = []
        fingerprints: set[object] = set()
        errors: list[object] = []
        for row in self.rows():
            ids.append(row["id"])
            fingerprints.add(row["fingerprint"])
            errors += [row["error"]] if row["error"] else []
        assert not errors
        assert sorted(ids) == sorted(f"in.txt:{i + 1}" for i in range(self.num_rows))
        assert len(fingerprints) == 1
        assert not list(self.out.rglob("*.staging"))

    def told(self) -> str:
        """The end of what the command has written, without its line ends."""
        return " ".join((self.folder / "log").read_text().split())[-2000:]


def relatives(process: Process) -> list[psutil.Process]:
    """The process's children and theirs, without Ray's agents: they outlive a killed raylet by the two minutes in
    which they try to tell of its end."""
    return [child for child in psutil.Process(process.pid).children(recursive=True) if not _is_agent(child)]


def named(family: list[psutil.Process], name: str) -> psutil.Process | None:
    return next((member for member in family if is_running(member) and name in _command(member)), None)


def is_running(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def wait_for(condition: Callable[[], bool], timeout_s: float) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, "it did not happen in time"
        time.sleep(0.1)


def _is_agent(process: psutil.Process) -> bool:
    command = _command(process)
    return "Agent" in command or "agent.py" in command


def _command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline()[:4])
    except psutil.NoSuchProcess:
        return ""
