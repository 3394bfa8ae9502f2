"""The manifest of a job: what it is, which of its files are whole, which rows they hold; it writes no rows.

`settings` is written once, `manifest` grows by a line a result file and one at the end. A line is whole or its end is
missing, and then its file does not count.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from batch_jobs.disk import sync_folder
from batch_jobs.row_places import DoneRows, Span
from cluster.errors import UserError

FORMAT = 1
JOB_FOLDER = "_job"
"""Inside the output folder; readers of folders of results skip names with an underscore."""


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    format: int
    digest: str
    fingerprint: dict[str, object]
    num_rows: int
    """Of the whole input, approximately."""
    started_at: str
    variant_choice: str | None = None
    """Why this variant, where none was named."""

    @property
    def variant(self) -> str | None:
        """By name, as the fingerprint has it."""
        variant = self.fingerprint.get("variant")
        return str(variant["name"]) if isinstance(variant, dict) and "name" in variant else None


class FileSpan(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """row_places.Span in a file of the job."""

    file: int
    begin: int
    end: int
    first: int
    next: int

    @property
    def span(self) -> Span:
        return Span(begin=self.begin, end=self.end, first=self.first, next=self.next)


class Counts(msgspec.Struct, frozen=True, kw_only=True):
    rows: int = 0
    errors: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    generating_s: float = 0.0

    def __add__(self, other: Counts) -> Counts:
        return Counts(
            rows=self.rows + other.rows,
            errors=self.errors + other.errors,
            prompt_tokens=self.prompt_tokens + other.prompt_tokens,
            completion_tokens=self.completion_tokens + other.completion_tokens,
            generating_s=self.generating_s + other.generating_s,
        )


class Part(msgspec.Struct, frozen=True, kw_only=True, tag="part"):
    file: str
    counts: Counts
    spans: list[FileSpan]
    at: str
    """ISO 8601"""
    error_file: str | None = None
    """Of a part in OpenAI's format that has errors."""

    @property
    def files(self) -> list[str]:
        return [self.file] if self.error_file is None else [self.file, self.error_file]


class Finished(msgspec.Struct, frozen=True, kw_only=True, tag="finished"):
    at: str


@dataclass(slots=True, kw_only=True)
class Manifest:
    folder: Path
    """The job folder."""
    settings: Settings
    parts: list[Part] = field(default_factory=list)
    is_finished: bool = False

    @classmethod
    def read(cls, output: Path) -> Manifest | None:
        """None where the folder holds no job. UserError where what is there is none of ours."""
        folder = output / JOB_FOLDER
        try:
            settings = msgspec.json.decode((folder / "settings").read_bytes(), type=Settings)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.MsgspecError) as error:
            raise UserError(f"{folder}/settings: cannot be read ({error}); give another folder with -o") from None
        if settings.format != FORMAT:
            raise UserError(
                f"{folder}/settings: of format {settings.format}, this version reads {FORMAT}; finish the job with the"
                " version that began it, or give another folder with -o"
            )
        manifest = cls(folder=folder, settings=settings)
        for line in _whole_lines(folder / "manifest"):
            manifest._take(line)
        return manifest

    @classmethod
    def create(cls, output: Path, settings: Settings) -> Manifest:
        folder = output / JOB_FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        staging = folder / "settings.staging"
        staging.write_bytes(msgspec.json.format(msgspec.json.encode(settings)) + b"\n")
        staging.rename(folder / "settings")
        sync_folder(folder)
        return cls(folder=folder, settings=settings)

    @property
    def counts(self) -> Counts:
        return sum((part.counts for part in self.parts), Counts())

    def done_rows(self) -> DoneRows:
        done = DoneRows()
        for part in self.parts:
            for span in part.spans:
                done.add_span(span.file, span.span)
        return done

    def append(self, entry: Part | Finished) -> None:
        """On disk when it returns."""
        line = msgspec.json.encode(entry)
        with (self.folder / "manifest").open("ab") as stream:
            stream.write(line + b"\n")
            stream.flush()
            os.fsync(stream.fileno())
        self._take(line)

    def cut_half_line(self) -> None:
        """What a kill may have left; for the one who goes on writing."""
        path = self.folder / "manifest"
        if path.exists():
            os.truncate(path, sum(len(line) + 1 for line in _whole_lines(path)))

    def _take(self, line: bytes) -> None:
        entry = msgspec.json.decode(line, type=Part | Finished)
        if isinstance(entry, Part):
            self.parts.append(entry)
        else:
            self.is_finished = True


def _whole_lines(path: Path) -> list[bytes]:
    return path.read_bytes().split(b"\n")[:-1] if path.exists() else []
