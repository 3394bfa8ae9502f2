"""The jobs of this user and how far each is, from their manifests; it starts and ends none.

A job notes its output folder in the cache when it begins. One that is gone, or holds no job any more, is forgotten.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from batch_jobs.job_folder import is_running
from batch_jobs.job_manifest import Counts, Manifest
from cluster.errors import UserError
from cluster.models import cache_dir

JobState = Literal["running", "finished", "ended early", "unreadable"]


@dataclass(frozen=True, slots=True, kw_only=True)
class JobStatus:
    output: Path
    state: JobState
    counts: Counts
    """Of whole files."""
    num_rows: int
    """Of the input, approximately."""
    started_at: str
    variant: str
    model: str


def note_job(output: Path) -> None:
    """So that `known_jobs` finds it."""
    path = output.resolve()
    name = hashlib.sha256(str(path).encode()).hexdigest()[:16]
    (_folder() / name).write_text(str(path))


def known_jobs() -> list[JobStatus]:
    """Those noted, the latest first."""
    found = []
    for note in _folder().iterdir():
        status = job_status(Path(note.read_text()))
        if status is None:
            note.unlink(missing_ok=True)
        else:
            found.append(status)
    return sorted(found, key=lambda status: status.started_at, reverse=True)


def jobs_in(folders: Iterable[Path]) -> list[JobStatus]:
    """UserError for a folder without a job."""
    found = []
    for folder in folders:
        status = job_status(folder)
        if status is None:
            raise UserError(f"{folder}: holds no job of generate's; give its -o folder")
        found.append(status)
    return found


def job_status(output: Path) -> JobStatus | None:
    try:
        manifest = Manifest.read(output)
    except UserError:
        return JobStatus(
            output=output, state="unreadable", counts=Counts(), num_rows=0, started_at="", variant="", model=""
        )
    if manifest is None:
        return None
    settings = manifest.settings
    return JobStatus(
        output=output,
        state="finished" if manifest.is_finished else "running" if is_running(output) else "ended early",
        counts=manifest.counts,
        num_rows=settings.num_rows,
        started_at=settings.started_at,
        variant=_named(settings.fingerprint, "variant"),
        model=_named(settings.fingerprint, "model"),
    )


def _named(fingerprint: dict[str, object], part: str) -> str:
    value = fingerprint.get(part)
    return str(value.get("name", "")) if isinstance(value, dict) else ""


def _folder() -> Path:
    folder = cache_dir() / "jobs"
    folder.mkdir(parents=True, exist_ok=True)
    return folder
