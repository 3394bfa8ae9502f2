"""The Ray Data plan of a job: read and tokenize (tasks) -> generate (actors); it writes nothing, chooses no sizes."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice, takewhile
from typing import Any, TypeVar

import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy, DataContext, Dataset, Datasource, ReadTask, TaskPoolStrategy
from ray.data.block import BlockMetadata

from batch_jobs.fleet_share import FleetShare
from batch_jobs.generator import ENCODED_SCHEMA, RowGenerator, encoded_table
from batch_jobs.input_files import InputFile
from batch_jobs.prompts import PromptEncoder
from batch_jobs.reading import Columns, PlacedRow, placed_rows, places_column
from batch_jobs.stop_sign import StopSign
from cluster.engine_spec import EngineSpec
from cluster.request import SamplingParams

CALLS_PER_ACTOR = 12
"""Slices of a quarter of a batch that an engine holds at once. A slice is there until its longest row has ended: where
outputs are of 1 to 600 tokens, two batches in slices of half of one left the engine without rows to start (Llama-3.1-8B
on an H100, lengths of the Azure conversation trace: 90 % of the engine's own rate)."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineSizes:
    """How rows are cut up on their way."""

    slice_rows: int
    """Rows that travel together through the engine."""
    slice_bytes: int
    """About what a slice of encoded rows weighs."""
    num_engines: int
    num_readers: int
    no_progress_s: float
    """Without a finished slice for so long the job ends."""


class RowSource(Datasource):  # type: ignore[misc]
    """One read task a stretch of a file, so that a row's number is known without reading what is before it.

    It gives encoded rows: a stage of its own for that is a task a slice, 0.1 s of a core where a slice has six rows.
    """

    def __init__(
        self, files: list[InputFile], columns: Columns, encoder: PromptEncoder, slice_rows: int, stop_sign: StopSign
    ) -> None:
        super().__init__()
        self._files = files
        self._columns = columns
        self._encoder = encoder
        self._slice_rows = slice_rows
        self._stop_sign = stop_sign

    def get_name(self) -> str:
        return "Rows"

    def estimate_inmemory_data_size(self) -> int | None:
        return None

    def get_read_tasks(self, parallelism: int, **_: Any) -> list[ReadTask]:
        unknown = BlockMetadata(num_rows=None, size_bytes=None, input_files=None, exec_stats=None)
        return [ReadTask(partial(self._tables, file), unknown, schema=ENCODED_SCHEMA) for file in self._files]

    def _tables(self, file: InputFile) -> Iterator[pa.Table]:
        slices = _sliced(placed_rows(file, self._columns), self._slice_rows)
        return (self._encoded(rows) for rows in takewhile(lambda _: not self._stop_sign.is_up(), slices))

    def _encoded(self, rows: list[PlacedRow]) -> pa.Table:
        encoded = self._encoder.encode_all(placed.row for placed in rows)
        return encoded_table(encoded, places_column([placed.place for placed in rows]))


def _sliced(items: Iterable[T], size: int) -> Iterator[list[T]]:
    iterator = iter(items)
    while piece := list(islice(iterator, size)):
        yield piece


def plan(
    files: list[InputFile],
    columns: Columns,
    encoder: PromptEncoder,
    spec: EngineSpec,
    sampling: SamplingParams,
    sizes: PipelineSizes,
    fingerprint: str,
    stop_sign: StopSign,
    share: FleetShare | None = None,
) -> Dataset:
    """The rows of the files as a dataset of result rows; nothing runs until it is iterated.

    No stage claims logical CPUs, because beside a fleet on a small host none may be left and Ray Data would wait for
    one forever; the number of tasks is bounded instead. `share`: of a fleet that runs the rows, so that no GPU is asked
    for here.
    """
    readers = TaskPoolStrategy(size=sizes.num_readers)
    engines = ActorPoolStrategy(
        size=sizes.num_engines,
        max_concurrent_calls_per_actor=CALLS_PER_ACTOR,
        max_tasks_in_flight_per_actor=CALLS_PER_ACTOR + 1,
        enable_true_multi_threading=True,
    )
    with DataContext.current(_data_context(sizes)), warnings.catch_warnings():
        # max_restarts has no named parameter yet; Ray is pinned, and 2.64 is where the unnamed ones go.
        warnings.filterwarnings("ignore", message="`ray_remote_args` is deprecated")
        rows = ray.data.read_datasource(
            RowSource(files, columns, encoder, sizes.slice_rows, stop_sign),
            compute=readers,
            num_cpus=0,
            override_num_blocks=len(files),
        )
        return rows.map_batches(
            RowGenerator,
            fn_constructor_kwargs={
                "spec": spec,
                "sampling": sampling,
                "fingerprint": fingerprint,
                "stop_sign": stop_sign,
                "share": share,
            },
            batch_size=sizes.slice_rows,
            batch_format="pyarrow",
            compute=engines,
            num_cpus=0,
            num_gpus=(spec.num_gpus if share is None else 0) or None,
            runtime_env={"env_vars": {"OMP_NUM_THREADS": str(spec.num_threads)}},
        )


def _data_context(sizes: PipelineSizes) -> DataContext:
    """Blocks of about a slice: of 128 MiB, the default, a job's first result would come with its last."""
    context = DataContext.get_current().copy()
    context.enable_progress_bars = False
    # A table is cut only where it has 1.5 times the target, and held back only where it has less than it.
    context.target_max_block_size = max(1, sizes.slice_bytes * 3 // 4)
    context.execution_no_progress_timeout_s = sizes.no_progress_s
    return context


@contextmanager
def quiet_ray_data() -> Iterator[None]:
    """Keeps Ray Data's lines off the console, where the job shows its progress; an error reaches the caller as such."""
    console = [
        handler
        for handler in logging.getLogger("ray.data").handlers
        if isinstance(handler, logging.StreamHandler) and not isinstance(handler, logging.FileHandler)
    ]
    levels = [handler.level for handler in console]
    for handler in console:
        handler.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        for handler, level in zip(console, levels, strict=True):
            handler.setLevel(level)
