"""Every scaling decision with what it was made from, as JSON lines that replay to the same decisions; it makes none.

The first line describes the fleet and what the policy remembered then, each further one is an observation and the
decision on it: a run of the policy from the first line on gives every decision again, on any machine. Times are Unix
seconds. A log that has grown to MOST_BYTES is set aside and another begun beside it, which goes on where it ended.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from itertools import count
from pathlib import Path

import msgspec

from autoscaling.fleet_description import FleetDescription
from autoscaling.kv_aware import PolicyMemory
from autoscaling.scaling import FleetObservation, ScalingDecision
from cluster.errors import UserError

FORMAT = 2
MOST_BYTES = 64 * 2**20
"""Of one file: some weeks of decisions every 10 s on ten replicas."""
KEPT_FILES = 4
"""Beside the one that is written."""
log = logging.getLogger("ray.serve")


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    format: int
    fleet: FleetDescription
    dry_run: bool = False
    """Decided, and not acted upon."""
    memory: PolicyMemory = field(default_factory=PolicyMemory)
    """Of the policy, before the first decision here; empty where it had seen nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    at_s: float
    observation: FleetObservation
    decision: ScalingDecision

    @property
    def time(self) -> str:
        return datetime.fromtimestamp(self.at_s, UTC).strftime("%Y-%m-%d %H:%M:%S")


class DecisionLog:
    """Appends; a line is whole or missing, since each is one write of a file opened for appending."""

    def __init__(
        self, path: Path, fleet: FleetDescription, *, dry_run: bool = False, most_bytes: int = MOST_BYTES
    ) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._header = Header(format=FORMAT, fleet=fleet, dry_run=dry_run)
        self._most_bytes = most_bytes
        self._begin(PolicyMemory())

    def append(
        self,
        at_s: float,
        observation: FleetObservation,
        decision: ScalingDecision,
        memory: PolicyMemory | None = None,
    ) -> None:
        """`memory` of the policy after the decision; without it the log grows for ever."""
        line = msgspec.json.encode(Entry(at_s=at_s, observation=observation, decision=decision)) + b"\n"
        with self._path.open("ab") as stream:
            stream.write(line)
            size = stream.tell()
        if memory is not None and size >= self._most_bytes:
            set_aside(self._path)
            self._begin(memory)

    def _begin(self, memory: PolicyMemory) -> None:
        self._path.write_bytes(msgspec.json.encode(replace(self._header, memory=memory)) + b"\n")


def opened_log(path: Path, fleet: FleetDescription, *, dry_run: bool) -> DecisionLog | None:
    """A new one; what lies there from a policy before is set aside. None, with a word why, where it cannot be."""
    try:
        if path.exists():
            set_aside(path)
        return DecisionLog(path, fleet, dry_run=dry_run)
    except OSError as error:
        log.error("no decision log: %s", error)
        return None


def set_aside(path: Path) -> None:
    """Beside where it was, named by the time of its last decision; the oldest beyond KEPT_FILES of them are removed."""
    ended = datetime.fromtimestamp(path.stat().st_mtime, UTC)
    stem = f"{path.stem}-{ended:%Y%m%d-%H%M%S}"
    names = (f"{stem}{f'-{number}' if number else ''}{path.suffix}" for number in count())
    path.rename(next(place for place in map(path.with_name, names) if not place.exists()))
    aside = re.compile(rf"{re.escape(path.stem)}-\d{{8}}-\d{{6}}(-\d+)?{re.escape(path.suffix)}")
    older = [other for other in path.parent.iterdir() if aside.fullmatch(other.name)]
    for other in sorted(older, key=lambda other: other.stat().st_mtime)[:-KEPT_FILES]:
        other.unlink()


@dataclass(frozen=True, slots=True, kw_only=True)
class Replayed:
    entry: Entry
    again: ScalingDecision

    @property
    def is_same(self) -> bool:
        return self.again == self.entry.decision


def read_header(path: Path) -> Header:
    """UserError where the file is no decision log."""
    try:
        with path.open("rb") as stream:
            header = msgspec.json.decode(stream.readline(), type=Header)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error}") from None
    except msgspec.MsgspecError as error:
        raise UserError(f"{path}:1: not the first line of a decision log ({error}); give the log of a fleet") from None
    if header.format != FORMAT:
        raise UserError(f"{path}: a decision log of format {header.format}, this version reads {FORMAT}")
    return header


def entries(path: Path) -> Iterator[Entry]:
    """UserError naming the line that is none; a last one without its end was being written."""
    read_header(path)
    with path.open("rb") as stream:
        for number, line in enumerate(stream, 1):
            if number == 1 or not line.endswith(b"\n"):
                continue
            try:
                yield msgspec.json.decode(line, type=Entry)
            except msgspec.MsgspecError as error:
                raise UserError(f"{path}:{number}: not a decision ({error}); the file was changed") from None


def replay(path: Path) -> Iterator[Replayed]:
    """Every decision made again from the first line on."""
    header = read_header(path)
    policy = header.fleet.policy()
    policy.resume(header.memory)
    for entry in entries(path):
        yield Replayed(entry=entry, again=policy.decide(entry.observation))
