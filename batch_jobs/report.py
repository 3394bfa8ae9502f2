"""What finished jobs tell, in plain values; it computes and shows nothing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerateReport:
    variant: str
    output: Path
    files: tuple[Path, ...]
    rows: int
    errors: int
    """Rows whose `error` says why they have no text."""
    prompt_tokens: int
    completion_tokens: int
    generating_s: float
    wall_s: float
    tokens_per_s: float
    """Generated tokens over generating_s."""
    batch_size: int
    batch_size_reason: str
