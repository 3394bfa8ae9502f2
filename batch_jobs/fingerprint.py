"""What decides the rows of a job, and how two such differ: a job is resumed only as what it was; it runs nothing."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import engine

DIGEST_LETTERS = 16
SAMPLE_BYTES = 2**20
"""Of each end of a large model file: hashing all of 16 GB would take longer than many jobs."""
NOT_MODEL_FILES = (".md", ".txt", ".png")
SHOWN_CHANGES = 3
SHOWN_LETTERS = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Fingerprint:
    settings: Mapping[str, Any]
    """Nested, JSON: what a message names when it differs."""

    @property
    def digest(self) -> str:
        text = json.dumps(self.settings, sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()[:DIGEST_LETTERS]

    def changes(self, since: Fingerprint) -> str:
        """In words, such as `sampling.max_tokens was 64 and is 128`; empty where nothing differs."""
        before, now = dict(_flat(since.settings)), dict(_flat(self.settings))
        names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
        words = [f"{name} was {_shown(before, name)} and is {_shown(now, name)}" for name in names[:SHOWN_CHANGES]]
        if len(names) > SHOWN_CHANGES:
            words.append(f"{len(names) - SHOWN_CHANGES} more")
        return ", ".join(words)


def files_digest(folder: Path) -> str:
    """Of a model's files: names, sizes, and contents (of large ones the first and last MiB)."""
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.is_file() and path.suffix not in NOT_MODEL_FILES and not path.name.startswith("."):
            digest.update(f"{path.name}:{path.stat().st_size}:".encode())
            digest.update(_ends(path))
    return digest.hexdigest()[:DIGEST_LETTERS]


def code_digest() -> str:
    """Of what computes a row: two versions may round otherwise."""
    root = Path(engine.__file__).parents[1]
    files = [path for folder in ("engine", "kernels") for path in sorted((root / folder).rglob("*.py"))]
    digest = hashlib.sha256(version("quantfleet").encode())
    for path in files:
        digest.update(path.read_bytes())
    return digest.hexdigest()[:DIGEST_LETTERS]


def _ends(path: Path) -> bytes:
    with path.open("rb") as stream:
        head = stream.read(SAMPLE_BYTES)
        stream.seek(max(len(head), path.stat().st_size - SAMPLE_BYTES))
        return head + stream.read(SAMPLE_BYTES)


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Values as JSON, which those read from a file came as."""
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", json.dumps(value, ensure_ascii=False)


def _shown(values: Mapping[str, str], name: str) -> str:
    text = values.get(name, "missing")
    return text if len(text) <= SHOWN_LETTERS else f"{text[:SHOWN_LETTERS]}..."
