"""Which rows have a custom_id that an earlier row has, found once for a job, in memory that its rows do not grow.

A row's id is kept as 16 bytes of its hash with the row's place, in files by the hash's first byte; each such file is
then sorted by itself. It knows no prompts and no engines.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np

from batch_jobs.input_files import InputFile
from batch_jobs.openai_lines import custom_id_of
from batch_jobs.records import BadRecord, jsonl_records
from cluster.errors import UserError

ENTRY = np.dtype([("high", ">u8"), ("low", ">u8"), ("file", "<i4"), ("begin", "<i8")])
NUM_BUCKETS = 64
"""10 million ids are 280 MB on disk, and 4 MB of memory at once."""
FLUSHED_ENTRIES = 1024
"""Of a bucket."""
MAX_REPEATED = 100_000
KEPT_IN = "repeated_ids"


def marked_files(files: Iterable[InputFile], job_folder: Path) -> list[InputFile]:
    """The files with `repeated`; what is found is kept in the job's folder, where a later run reads it."""
    files = list(files)
    batches = [file for file in files if file.kind == "openai-batch"]
    if not batches:
        return files
    kept = job_folder / KEPT_IN
    if not kept.exists():
        _keep(kept, find_repeated(batches, job_folder))
    begins = {int(index): frozenset(places) for index, places in json.loads(kept.read_bytes()).items()}
    return [replace(file, repeated=begins.get(file.index, frozenset())) for file in files]


def find_repeated(files: Iterable[InputFile], scratch: Path) -> dict[int, list[int]]:
    """Where such rows begin, by file. UserError where they are too many to be a slip."""
    paths = [scratch / f"ids-{bucket}.staging" for bucket in range(NUM_BUCKETS)]
    try:
        _scatter(files, paths)
        repeated: dict[int, list[int]] = {}
        for path in paths:
            for file, begin in _repeated_in(np.fromfile(path, ENTRY)):
                repeated.setdefault(file, []).append(begin)
    finally:
        for path in paths:
            path.unlink(missing_ok=True)
    num_repeated = sum(map(len, repeated.values()))
    if num_repeated > MAX_REPEATED:
        raise UserError(f"{num_repeated} rows have the custom_id of an earlier row; each row needs its own")
    return repeated


def _scatter(files: Iterable[InputFile], paths: list[Path]) -> None:
    waiting: list[list[bytes]] = [[] for _ in paths]
    for path in paths:
        path.write_bytes(b"")
    for file in files:
        begin = file.begin
        for found in jsonl_records(file):
            bucket, entry = _entry(file.index, begin, found.record)
            begin = found.end
            if entry is not None:
                waiting[bucket].append(entry)
                if len(waiting[bucket]) >= FLUSHED_ENTRIES:
                    _append(paths[bucket], waiting[bucket])
    for path, entries in zip(paths, waiting, strict=True):
        _append(path, entries)


def _entry(file: int, begin: int, record: dict[str, object] | BadRecord) -> tuple[int, bytes | None]:
    """The bucket and the entry; none for a row without an id, which is an error of its own."""
    try:
        row_id = custom_id_of({} if isinstance(record, BadRecord) else record)
        digest = hashlib.blake2b(row_id.encode(), digest_size=16).digest()
    except ValueError:
        return 0, None
    return digest[0] % NUM_BUCKETS, digest + struct.pack("<iq", file, begin)


def _append(path: Path, entries: list[bytes]) -> None:
    with path.open("ab") as stream:
        stream.write(b"".join(entries))
    entries.clear()


def _repeated_in(entries: np.ndarray) -> list[tuple[int, int]]:
    """All but the first of each id."""
    ordered = entries[np.lexsort((entries["begin"], entries["file"], entries["low"], entries["high"]))]
    same = (ordered["high"][1:] == ordered["high"][:-1]) & (ordered["low"][1:] == ordered["low"][:-1])
    return [(int(entry["file"]), int(entry["begin"])) for entry in ordered[1:][same]]


def _keep(path: Path, repeated: dict[int, list[int]]) -> None:
    staging = path.with_name(f"{path.name}.staging")
    with staging.open("wb") as stream:
        stream.write(json.dumps(repeated).encode())
        stream.flush()
        os.fsync(stream.fileno())
    staging.rename(path)
