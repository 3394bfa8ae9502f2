"""How long replicas of a variant took from being asked for to being ready, kept on disk; it starts none."""

from __future__ import annotations

import json
import os
from pathlib import Path
from statistics import median

PRIOR_S = 30.0
"""Before any start was measured; a process, its imports and the weights of a small model take 5 to 10 s."""
KEPT = 8


def cold_start_s(path: Path) -> float:
    """The median of the last starts."""
    taken_s = _read(path)
    return median(taken_s) if taken_s else PRIOR_S


def add_cold_start(path: Path, took_s: float) -> None:
    """Written whole or not at all."""
    taken_s = [*_read(path), round(took_s, 3)][-KEPT:]
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.unfinished")
    try:
        unfinished.write_text(json.dumps({"cold_starts_s": taken_s}))
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def _read(path: Path) -> list[float]:
    """Nothing where there is no such file, or it is not whole."""
    try:
        return [float(value) for value in json.loads(path.read_text())["cold_starts_s"]]
    except (OSError, ValueError, KeyError, TypeError):
        return []
