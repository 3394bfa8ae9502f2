"""Profile: measured step times of a variant on an accelerator share, as JSON on disk; it measures and fits nothing."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from cluster.errors import UserError

POINT_LINES = re.compile(r'\{\s*"shape": \{[^{}]*\},[^{}]*\}')
FORMAT = 1
"""Raised when the meaning of a field changes; a file of another format is measured anew."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepShape:
    """What one engine step computes: decodes beside chunks of prompts."""

    decode_sequences: int
    kv_tokens: int
    """KV tokens that the decodes read, summed over the sequences."""
    prefill_tokens: int = 0
    prefill_context_tokens: int = 0
    """KV tokens that stood before the chunk, which its attention reads too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfilePoint:
    shape: StepShape
    step_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfileKey:
    """What a measurement holds for; anything else needs its own."""

    model: str
    variant: str
    accelerator: str
    threads: int
    versions: Mapping[str, str]
    """Of whatever changes the speed: torch, numba, quantfleet."""
    share: float = 1.0

    def file_name(self) -> str:
        text = json.dumps(asdict(self), sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()[:12]
        return f"{_safe(self.model)}-{_safe(self.variant)}-{_safe(self.accelerator)}-{self.threads}t-{digest}.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    key: ProfileKey
    points: tuple[ProfilePoint, ...]
    measured_at: str
    """Date and time, ISO 8601."""

    def times(self, ratio: float) -> Profile:
        """As if every step had taken `ratio` times as long."""
        return replace(self, points=tuple(replace(point, step_s=ratio * point.step_s) for point in self.points))

    def to_json(self) -> str:
        return json.dumps(self._plain(), indent=1)

    def _plain(self) -> dict[str, Any]:
        return {"format": FORMAT} | asdict(self)

    @classmethod
    def from_json(cls, text: str) -> Profile:
        """ValueError for anything but a whole profile of this format."""
        return cls._of(json.loads(text))

    @classmethod
    def _of(cls, data: Any) -> Profile:
        try:
            if data["format"] != FORMAT:
                raise ValueError(f"profile format {data['format']} is not {FORMAT}; measure it anew")
            return cls(
                key=ProfileKey(**data["key"]),
                points=tuple(_point(point) for point in data["points"]),
                measured_at=data["measured_at"],
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"not a whole profile ({error!r}); measure it anew") from error

    def save(self, path: Path) -> None:
        """Written whole or not at all: several replicas may measure at the same time."""
        _write_whole(path, self.to_json())

    @classmethod
    def load(cls, path: Path, key: ProfileKey) -> Profile | None:
        """The stored profile of exactly this key; None where there is none that can be used."""
        try:
            profile = cls.from_json(path.read_text())
        except (OSError, ValueError):
            return None
        return profile if profile.key == key else None


def save_profiles(path: Path, profiles: Sequence[Profile]) -> None:
    """One file, a point a line: it is made to be kept in a repository."""
    lines = json.dumps({"profiles": [profile._plain() for profile in profiles]}, indent=1)
    _write_whole(path, POINT_LINES.sub(lambda match: " ".join(match.group().split()), lines) + "\n")


def read_profiles(path: Path) -> list[Profile]:
    """Of a file with one profile or several, or of a folder of such files; UserError where one cannot be read."""
    found: list[Profile] = []
    try:
        for file in sorted(path.glob("*.json")) if path.is_dir() else [path]:
            data = json.loads(file.read_text(encoding="utf-8"))
            each = data["profiles"] if isinstance(data, dict) and "profiles" in data else [data]
            found += [Profile._of(one) for one in each]
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}; measure with `quantfleet profile -o`") from None
    except ValueError as error:
        raise UserError(f"{file}: no profiles: {error}; measure with `quantfleet profile -o`") from None
    return found


def newest_of(profiles: Iterable[Profile], variant: str, accelerator: str) -> Profile | None:
    fitting = [one for one in profiles if (one.key.variant, one.key.accelerator) == (variant, accelerator)]
    return max(fitting, key=lambda profile: profile.measured_at, default=None)


def newest_profile(
    folder: Path, models: Collection[str], variant: str, accelerator: str, threads: int
) -> Profile | None:
    """Of whatever versions: to plan with, where nothing is started that would tell its own. `models`: its names."""
    found: list[Profile] = []
    for path in folder.glob("*.json"):
        try:
            profile = Profile.from_json(path.read_text())
        except (OSError, ValueError):
            continue
        key = profile.key
        if key.model in models and (key.variant, key.accelerator, key.threads) == (variant, accelerator, threads):
            found.append(profile)
    return max(found, key=lambda profile: profile.measured_at, default=None)


def _write_whole(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.unfinished")
    unfinished.write_text(text)
    unfinished.replace(path)


def _point(data: Mapping[str, Any]) -> ProfilePoint:
    return ProfilePoint(shape=StepShape(**data["shape"]), step_s=float(data["step_s"]))


def _safe(name: str) -> str:
    return "".join(char if char.isalnum() or char in ".-" else "_" for char in name)
