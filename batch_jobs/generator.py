"""The actor of the pipeline: a real engine beside it, and slices of encoded rows in, result rows out."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable
from dataclasses import replace
from itertools import count

import pyarrow as pa

from batch_jobs.engine_feeder import EngineFeeder, Outcome
from batch_jobs.prompts import EncodedRow
from batch_jobs.reading import PLACE, PLACE_TYPE
from batch_jobs.stop_sign import StopSign
from batch_jobs.writing import ResultRow, results_table
from cluster.engine_spec import EngineSpec
from cluster.request import GenerationRequest, SamplingParams
from engine.text import StreamDetokenizer, TextCodec

ENCODED_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("prompt", pa.string()),
        ("token_ids", pa.list_(pa.int32())),
        ("error", pa.string()),
        (PLACE, PLACE_TYPE),
    ]
)
STARTED, FINISHED = "started_s", "finished_s"


class RowGenerator:
    """What Ray Data's actor pool runs; it is called from several threads at once, and all of them share the engine."""

    def __init__(self, spec: EngineSpec, sampling: SamplingParams, fingerprint: str, stop_sign: StopSign) -> None:
        self._spec = spec
        self._sampling = sampling
        self._fingerprint = fingerprint
        self._stop_sign = stop_sign
        self._codec = TextCodec(spec.checkpoint)
        self._call_numbers = count()
        self._feeder = EngineFeeder(spec)

    def __call__(self, encoded: pa.Table) -> pa.Table:
        started_s = time.time()
        if self._stop_sign.is_up():
            encoded = encoded.slice(0, 0)  # a later run's work
        rows = [EncodedRow(**record) for record in encoded.drop_columns([PLACE]).to_pylist()]
        good = [row for row in rows if row.error is None]
        call = next(self._call_numbers)
        requests = [self._request(f"{call}-{i}", row) for i, row in enumerate(good)]
        outcomes = iter(self._feeder.generate(requests))
        results = results_table(
            self._failed(row, row.error) if row.error is not None else self._result(row, next(outcomes)) for row in rows
        )
        return with_times(results.append_column(PLACE, encoded[PLACE]), started_s, time.time())

    def _request(self, request_id: str, row: EncodedRow) -> GenerationRequest:
        room = sequence_limit(self._spec) - len(row.token_ids)
        sampling = replace(
            self._sampling,
            max_tokens=min(self._sampling.max_tokens, room),
            seed=None if self._sampling.seed is None else row_seed(self._sampling.seed, row.id),
        )
        return GenerationRequest(request_id=request_id, prompt_token_ids=row.token_ids, sampling=sampling)

    def _result(self, row: EncodedRow, outcome: Outcome) -> ResultRow:
        if outcome.finish_reason is None or outcome.error is not None or outcome.finish_reason == "error":
            return self._failed(row, outcome.error or "the engine gave no reason", len(row.token_ids))
        detokenizer = StreamDetokenizer.for_request(self._codec, self._sampling)
        return ResultRow(
            id=row.id,
            prompt=row.prompt,
            text=detokenizer.push(outcome.token_ids) + detokenizer.finish(),
            prompt_tokens=len(row.token_ids),
            completion_tokens=len(outcome.token_ids),
            finish_reason=outcome.finish_reason,
            variant=self._spec.variant.name,
            fingerprint=self._fingerprint,
            error=None,
        )

    def _failed(self, row: EncodedRow, error: str, prompt_tokens: int = 0) -> ResultRow:
        return ResultRow(
            id=row.id,
            prompt=row.prompt,
            text=None,
            prompt_tokens=prompt_tokens,
            completion_tokens=0,
            finish_reason="error",
            variant=self._spec.variant.name,
            fingerprint=self._fingerprint,
            error=error,
        )


def with_times(results: pa.Table, started_s: float, finished_s: float) -> pa.Table:
    """Beside the columns of the output, when this slice came to the engine and left it: what the job's rate is over."""
    for name, value in ((STARTED, started_s), (FINISHED, finished_s)):
        results = results.append_column(name, pa.array([value] * len(results), pa.float64()))
    return results


def sequence_limit(spec: EngineSpec) -> int:
    """Tokens that one sequence may reach, prompt and output."""
    return min(spec.max_context, spec.kv_capacity_tokens)


def row_seed(seed: int, row_id: str) -> int:
    """A row's own seed: equal prompts in other rows draw other tokens, and the order of rows changes nothing."""
    digest = hashlib.blake2b(row_id.encode(), key=seed.to_bytes(8, "big", signed=True), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def encoded_table(rows: Iterable[EncodedRow], places: pa.ChunkedArray) -> pa.Table:
    """ENCODED_SCHEMA; `places` as in the rows' table before."""
    fields = [schema_field for schema_field in ENCODED_SCHEMA if schema_field.name != PLACE]
    records = [{each.name: getattr(row, each.name) for each in fields} for row in rows]
    return pa.Table.from_pylist(records, schema=pa.schema(fields)).append_column(PLACE, places)
