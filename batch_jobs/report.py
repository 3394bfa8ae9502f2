"""What finished jobs tell, in plain values; it computes and shows nothing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerateReport:
    variant: str
    output: Path
    fingerprint: str
    files: tuple[Path, ...]
    is_finished: bool
    """False where a signal ended the job; the same job goes on."""
    rows: int
    rows_before: int
    """Of those, what earlier runs had done."""
    errors: int
    """Rows whose `error` says why they have no text."""
    prompt_tokens: int
    completion_tokens: int
    generating_s: float
    """Of this run, like the three below."""
    wall_s: float
    tokens_per_s: float
    """Generated tokens over generating_s."""
    batch_size: int | None
    """None where nothing was left to do."""
    batch_size_reason: str
    cost: float
    """Of all runs, in the currency of the accelerator's price; 0 where it has none."""
