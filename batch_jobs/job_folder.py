"""The output folder of a job: rows in, whole files out, each row once however often the job is killed and resumed.

A file is committed in two phases: staged and synced, entered in the manifest, then renamed to its own name. Rows that
wait for their file lie in a journal. Whoever lists *.parquet or *.jsonl sees whole files at any moment; all else lies
in _job/. It knows nothing of prompts, engines and Ray.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
import pyarrow.compute as pc

from batch_jobs.disk import sync_folder
from batch_jobs.fingerprint import Fingerprint
from batch_jobs.job_manifest import (
    FORMAT,
    JOB_FOLDER,
    Counts,
    FileSpan,
    Finished,
    Manifest,
    Part,
    Settings,
)
from batch_jobs.reading import PLACE, PLACE_TYPE, places_of
from batch_jobs.row_journal import RowJournal, read_journal
from batch_jobs.row_places import DoneRows, joined_spans
from batch_jobs.writing import ANSWERED_SCHEMA, FILE_SUFFIX, RESULT_SUFFIXES, FileFormat, tables_of, write_file
from cluster.errors import UserError

PLACED_SCHEMA = ANSWERED_SCHEMA.append(pa.field(PLACE, PLACE_TYPE))
STAGING_SUFFIX = ".staging"


@dataclass(slots=True, kw_only=True)
class JobFolder:
    path: Path
    format: FileFormat
    rows_per_file: int
    manifest: Manifest
    done: DoneRows
    """In files or in the journal."""
    pending: pa.Table
    """PLACED_SCHEMA: what the journal holds."""
    pending_s: float = 0.0
    """Seconds of generating that are in no file yet."""
    _journal: RowJournal | None = None
    _lock: BinaryIO | None = field(default=None, repr=False)

    @classmethod
    def open(
        cls,
        path: Path,
        fingerprint: Fingerprint,
        file_format: FileFormat,
        rows_per_file: int,
        count_rows: Callable[[], int],
        variant_choice: str | None = None,
    ) -> JobFolder:
        """A new job's folder, or the same job's with all it has done. UserError where the folder is another's.

        `count_rows` is asked of a new job only: the whole input, approximately. `variant_choice` is noted of one.
        """
        refuse_foreign(path)
        num_rows = count_rows() if Manifest.read(path) is None else 0  # first: an empty input leaves no folder behind
        try:
            (path / JOB_FOLDER).mkdir(parents=True, exist_ok=True)
            lock = _locked(path)
        except OSError as error:
            raise UserError(f"{path}: cannot be written: {error.strerror}; give another folder with -o") from None
        try:
            manifest = _manifest(path, fingerprint, num_rows, variant_choice)
            folder = cls(
                path=path,
                format=file_format,
                rows_per_file=rows_per_file,
                manifest=manifest,
                done=manifest.done_rows(),
                pending=PLACED_SCHEMA.empty_table(),
                _lock=lock,
            )
            folder._recover()
        except BaseException:
            lock.close()
            raise
        return folder

    @property
    def files(self) -> list[Path]:
        return [self.path / name for part in self.manifest.parts for name in part.files]

    @property
    def counts(self) -> Counts:
        """Of all that is done."""
        return self.manifest.counts + counts_of(self.pending, self.pending_s)

    def add(self, rows: pa.Table, generating_s: float = 0.0) -> None:
        """PLACED_SCHEMA; rows that are done already are left out."""
        fresh = self._fresh(rows)
        if len(fresh):
            assert self._journal is not None, "rows come while the folder is open"
            self._journal.append(fresh)
            self._keep(fresh)
        self.pending_s += generating_s
        while len(self.pending) >= self.rows_per_file:
            self._commit(self.rows_per_file)

    def commit(self) -> None:
        """Writes what has been added so far, as a smaller file if need be."""
        if len(self.pending):
            self._commit(len(self.pending))

    def finish(self) -> None:
        self.commit()
        self.manifest.append(Finished(at=_now()))

    def close(self) -> None:
        if self._journal is not None:
            self._journal.close()
            self._journal = None
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _fresh(self, rows: pa.Table) -> pa.Table:
        done = [self.done.holds(place.file, place.begin) for place in places_of(rows)]
        return rows.filter(pa.array([not is_done for is_done in done])) if any(done) else rows

    def _keep(self, rows: pa.Table) -> None:
        self.done.add(places_of(rows))
        self.pending = pa.concat_tables([self.pending, rows])

    def _commit(self, num_rows: int) -> None:
        rows, rest = self.pending.slice(0, num_rows), self.pending.slice(num_rows)
        names = []
        for stem, table in tables_of(rows.drop_columns([PLACE]), self.format).items():
            names.append(f"{stem}-{len(self.manifest.parts):06d}{FILE_SUFFIX[self.format]}")
            write_file(self._staging(names[-1]), table, self.format)
        spans = [
            FileSpan(file=file, begin=span.begin, end=span.end, first=span.first, next=span.next)
            for file, span in joined_spans(places_of(rows))
        ]
        counts = counts_of(rows, self.pending_s)
        file, error_file = (*names, None)[:2]
        self.manifest.append(Part(file=file, counts=counts, spans=spans, at=_now(), error_file=error_file))
        for name in names:
            self._staging(name).rename(self.path / name)
        sync_folder(self.path)
        self.pending, self.pending_s = rest, 0.0
        self._begin_journal()

    def _begin_journal(self) -> None:
        """For the next file, with the rows that wait for it; then the one of the file before goes."""
        former, self._journal = self._journal, None
        if former is not None:
            former.close()
        path = self._journal_path()
        journal = RowJournal(path.with_name(path.name + STAGING_SUFFIX), PLACED_SCHEMA)
        if len(self.pending):
            journal.append(self.pending)
        journal.sync()
        journal.path.rename(path)
        self._journal = journal
        for other in path.parent.glob("rows-*"):
            if other != path:
                other.unlink()

    def _recover(self) -> None:
        """The last commit's second phase, if a kill came before it; and what the journal holds."""
        self.manifest.cut_half_line()
        last = self.manifest.parts[-1].files if self.manifest.parts else []
        for final in self.files:
            if not final.exists():
                staging = self._staging(final.name)
                if final.name not in last or not staging.exists():
                    raise UserError(f"{final}: is missing; bring it back, or begin anew in another folder (-o)")
                staging.rename(final)
        sync_folder(self.path)
        for path in sorted((self.path / JOB_FOLDER).glob("rows-*")):
            self._keep(self._fresh(read_journal(path, PLACED_SCHEMA)))
        for leftover in (self.path / JOB_FOLDER).glob(f"*{STAGING_SUFFIX}"):
            leftover.unlink()
        if not self.manifest.is_finished:
            self._begin_journal()

    def _staging(self, name: str) -> Path:
        return self.path / JOB_FOLDER / f"{name}{STAGING_SUFFIX}"

    def _journal_path(self) -> Path:
        return self.path / JOB_FOLDER / f"rows-{len(self.manifest.parts):06d}"


def counts_of(rows: pa.Table, generating_s: float) -> Counts:
    if not len(rows):
        return Counts(generating_s=generating_s)
    return Counts(
        rows=len(rows),
        errors=len(rows) - rows["error"].null_count,
        prompt_tokens=pc.sum(rows["prompt_tokens"]).as_py(),
        completion_tokens=pc.sum(rows["completion_tokens"]).as_py(),
        generating_s=generating_s,
    )


def refuse_foreign(path: Path) -> None:
    """UserError where results lie that no job of ours tells of."""
    if path.exists() and not path.is_dir():
        raise UserError(f"{path}: is a file; -o takes a folder")
    if (path / JOB_FOLDER / "settings").exists():
        return
    results = sorted(file.name for file in path.glob("*") if file.suffix in RESULT_SUFFIXES)
    if results:
        raise UserError(f"{path}: holds results already ({results[0]}, {len(results)} in all); give an empty folder")


def set_aside(path: Path) -> Path | None:
    """Moves a former run away, beside where it lay; None where there is none."""
    if not (path / JOB_FOLDER).exists():
        return None
    with _locked(path):
        number = next(n for n in range(1, 10**6) if not path.with_name(f"{path.name}.run{n}").exists())
        return path.rename(path.with_name(f"{path.name}.run{number}"))


def is_running(path: Path) -> bool:
    try:
        _locked(path).close()
    except FileNotFoundError:
        return False
    except UserError:
        return True
    return False


def _manifest(path: Path, fingerprint: Fingerprint, num_rows: int, variant_choice: str | None) -> Manifest:
    manifest = Manifest.read(path)
    if manifest is None:
        settings = Settings(
            format=FORMAT,
            digest=fingerprint.digest,
            fingerprint=dict(fingerprint.settings),
            num_rows=num_rows,
            started_at=_now(),
            variant_choice=variant_choice,
        )
        return Manifest.create(path, settings)
    if manifest.settings.digest != fingerprint.digest:
        changes = fingerprint.changes(Fingerprint(settings=manifest.settings.fingerprint))
        raise UserError(f"{path}: holds another job's rows: {changes}; set it back, give another -o, or --new-run")
    return manifest


def _locked(path: Path) -> BinaryIO:
    """One job at a time; the kernel lets go of it when the process ends, however it ends."""
    stream = (path / JOB_FOLDER / "lock").open("a+b")
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        stream.close()
        raise UserError(f"{path}: another process writes here; wait for it, or give another folder with -o") from None
    os.set_inheritable(stream.fileno(), False)
    return stream


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
