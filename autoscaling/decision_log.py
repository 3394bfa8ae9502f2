"""Every scaling decision with what it was made from, as JSON lines that replay to the same decisions; it makes none.

The first line describes the fleet, each further one is an observation and the decision on it: a run of the policy from
the first line on gives every decision again, on any machine. Times are Unix seconds.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from autoscaling.fleet_description import FleetDescription
from autoscaling.scaling import FleetObservation, ScalingDecision
from cluster.errors import UserError

FORMAT = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    format: int
    fleet: FleetDescription
    dry_run: bool = False
    """Decided, and not acted upon."""


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

    def __init__(self, path: Path, fleet: FleetDescription, *, dry_run: bool = False) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        path.write_bytes(msgspec.json.encode(Header(format=FORMAT, fleet=fleet, dry_run=dry_run)) + b"\n")

    def append(self, at_s: float, observation: FleetObservation, decision: ScalingDecision) -> None:
        entry = Entry(at_s=at_s, observation=observation, decision=decision)
        with self._path.open("ab") as stream:
            stream.write(msgspec.json.encode(entry) + b"\n")


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
    policy = read_header(path).fleet.policy()
    for entry in entries(path):
        yield Replayed(entry=entry, again=policy.decide(entry.observation))
