"""The output and error file of a batch, of what its jobs have written; it runs no row and ends no batch.

A batch that ends early keeps its finished rows; each of the others is a line of the error file.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec

from batch_jobs.fingerprint import Fingerprint
from batch_jobs.input_files import InputFile, find_input_files
from batch_jobs.job_folder import PLACED_SCHEMA, JobFolder, counts_of
from batch_jobs.job_manifest import JOB_FOLDER, Counts, Manifest, Part
from batch_jobs.openai_lines import custom_id_of
from batch_jobs.records import BadRecord, jsonl_records
from batch_jobs.row_journal import read_journal
from serve_app.batches.batch_folder import BatchJob
from serve_app.batches.file_store import FileRecord, FileStore
from serve_app.batches.record import Progress

FORMAT: Literal["openai-batch"] = "openai-batch"
"""Of a batch's input and of its results."""
ROWS_PER_FILE = 1000
COPIED_BYTES = 2**20
ID_LETTERS = 24


class LineId(msgspec.Struct):
    custom_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NotRun:
    """Why the rows that are not done were not run."""

    code: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class JobResults:
    """What the jobs' folders hold, in files and nowhere else once it was made."""

    progress: Progress
    output: list[Path]
    errors: list[Path]

    @classmethod
    def of(cls, jobs: Iterable[BatchJob]) -> JobResults:
        """Rows that still wait for their file get one."""
        jobs = list(jobs)
        output: list[Path] = []
        errors: list[Path] = []
        for folder in (job.output for job in jobs):
            for part in _committed_parts(folder):
                output.append(folder / part.file)
                if part.error_file is not None:
                    errors.append(folder / part.error_file)
        return cls(progress=progress_in(jobs), output=output, errors=errors)

    def done_ids(self) -> set[str]:
        return {
            msgspec.json.decode(line, type=LineId).custom_id
            for path in (*self.output, *self.errors)
            for line in path.read_bytes().splitlines()
        }


def _committed_parts(job: Path) -> list[Part]:
    manifest = Manifest.read(job)
    if manifest is None:
        return []
    same = Fingerprint(settings=manifest.settings.fingerprint)
    folder = JobFolder.open(job, same, FORMAT, ROWS_PER_FILE, lambda: 0)
    try:
        folder.commit()
    finally:
        folder.close()
    return folder.manifest.parts


def progress_in(jobs: Iterable[BatchJob]) -> Progress:
    """Of files and journals, also while a job runs."""
    counts = sum((_counts_in(job.output) for job in jobs), Counts())
    return Progress(
        completed=counts.rows - counts.errors,
        failed=counts.errors,
        prompt_tokens=counts.prompt_tokens,
        completion_tokens=counts.completion_tokens,
    )


def _counts_in(job: Path) -> Counts:
    manifest = Manifest.read(job)
    if manifest is None:
        return Counts()
    journal = job / JOB_FOLDER / f"rows-{len(manifest.parts):06d}"  # one before is in the manifest already
    return manifest.counts + counts_of(read_journal(journal, PLACED_SCHEMA), 0.0)


def input_of(path: Path) -> InputFile:
    """UserError where it is no text of lines."""
    (file,) = find_input_files((str(path),), input_format=FORMAT)
    return file


def write_rest(file: InputFile, done: set[str], rest: Path) -> bool:
    """The lines whose id is not among those done, as a file that is whole or not there; False: there are none."""
    staging, begin, is_empty = rest.with_name(f"{rest.name}.staging"), file.begin, True
    with file.source.open() as lines, staging.open("wb") as stream:
        for found in jsonl_records(file):
            begin, size = found.end, found.end - begin
            line = lines.read(size)
            if not isinstance(found.record, BadRecord) and custom_id_of(found.record) not in done:
                stream.write(line.rstrip(b"\r\n") + b"\n")
                is_empty = False
        stream.flush()
        os.fsync(stream.fileno())
    if is_empty:
        staging.unlink()
    else:
        staging.rename(rest)
    return not is_empty


def lines_not_run(file: InputFile, done: set[str], reason: NotRun, batch_id: str) -> Iterator[bytes]:
    """Of the error file: the lines of the input whose id is not among those done."""
    error = {"code": reason.code, "message": reason.message}
    for found in jsonl_records(file):
        if isinstance(found.record, BadRecord):
            continue
        custom_id = custom_id_of(found.record)
        if custom_id not in done:
            digest = hashlib.sha256(f"{batch_id}:{custom_id}".encode()).hexdigest()[:ID_LETTERS]
            line = {"id": f"batch_req_{digest}", "custom_id": custom_id, "response": None, "error": error}
            yield msgspec.json.encode(line) + b"\n"


def keep_lines(
    files: FileStore, file_id: str, filename: str, pieces: Iterable[bytes], expires_after_s: int | None
) -> FileRecord | None:
    """As a file of the batch's caller; None where there are no lines, for then there is no file."""
    with files.staged(file_id) as staged:
        for piece in pieces:
            staged.write(piece)
        return files.keep(staged, filename, "batch_output", expires_after_s) if staged.size_bytes else None


def contents(paths: Iterable[Path]) -> Iterator[bytes]:
    for path in paths:
        with path.open("rb") as stream:
            while piece := stream.read(COPIED_BYTES):
                yield piece
