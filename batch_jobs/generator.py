"""The actor of the pipeline: a real engine beside it, and slices of encoded rows in, result rows out."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable
from dataclasses import fields, replace
from functools import partial
from itertools import count

import pyarrow as pa

from batch_jobs.engine_feeder import AHEAD, EngineFeeder, Outcome
from batch_jobs.engine_identity import sequence_limit
from batch_jobs.fleet_engine import FleetEngine
from batch_jobs.fleet_share import FleetShare
from batch_jobs.job_metrics import JobMetrics
from batch_jobs.openai_requests import RowRequest
from batch_jobs.openai_results import answer_of, refusal_of
from batch_jobs.prompts import EncodedRow
from batch_jobs.reading import PLACE, PLACE_TYPE
from batch_jobs.stop_sign import StopSign
from batch_jobs.writing import ANSWER, ResultRow, results_table
from cluster.engine_spec import EngineSpec
from cluster.request import GenerationRequest, SamplingParams
from engine.text import StreamDetokenizer, TextCodec

ENCODED_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("prompt", pa.string()),
        ("token_ids", pa.list_(pa.int32())),
        ("error", pa.string()),
        ("request", pa.string()),
        (PLACE, PLACE_TYPE),
    ]
)
STARTED, FINISHED = "started_s", "finished_s"


class RowGenerator:
    """What Ray Data's actor pool runs; it is called from several threads at once, and all of them share the engine."""

    def __init__(
        self,
        spec: EngineSpec,
        sampling: SamplingParams,
        fingerprint: str,
        stop_sign: StopSign,
        share: FleetShare | None = None,
    ) -> None:
        """`share`: of a fleet that runs the rows in the place of an engine of this actor's own."""
        self._spec = spec
        self._sampling = sampling
        self._fingerprint = fingerprint
        self._stop_sign = stop_sign
        self._codec = TextCodec(spec.checkpoint)
        self._call_numbers = count()
        self._metrics = JobMetrics(spec.variant.name)
        if share is None:
            self._feeder = EngineFeeder(spec)
        else:
            self._feeder = EngineFeeder(spec, partial(FleetEngine.start, share, rows_ahead=AHEAD))

    def __call__(self, encoded: pa.Table) -> pa.Table:
        started_s = time.time()
        if self._stop_sign.is_up():
            encoded = encoded.slice(0, 0)  # a later run's work
        rows = [EncodedRow(**record) for record in encoded.drop_columns([PLACE]).to_pylist()]
        call = next(self._call_numbers)
        requests = [self._request(f"{call}-{i}", row) for i, row in enumerate(rows) if row.error is None]
        outcomes = zip(requests, self._feeder.generate(requests), strict=True)
        ended = [
            self._refused(row, row.error) if row.error is not None else self._ended(row, *next(outcomes))
            for row in rows
        ]
        results = results_table(result for result, _ in ended)
        self._metrics.ended(results)
        answers = pa.array([answer for _, answer in ended], pa.string())
        results = results.append_column(ANSWER, answers).append_column(PLACE, encoded[PLACE])
        return with_times(results, started_s, time.time())

    def _sampling_of(self, row: EncodedRow) -> SamplingParams:
        """The row's own, or the job's; a job's seed is for rows that bring none."""
        own = None if row.request is None else RowRequest.decoded(row.request).sampling
        sampling = self._sampling if own is None else own
        if self._sampling.seed is None or (own is not None and own.seed is not None):
            return sampling
        return replace(sampling, seed=row_seed(self._sampling.seed, row.id))

    def _request(self, request_id: str, row: EncodedRow) -> GenerationRequest:
        room = sequence_limit(self._spec) - len(row.token_ids)
        sampling = self._sampling_of(row)
        bounded = replace(sampling, max_tokens=min(sampling.max_tokens, room))
        return GenerationRequest(request_id=request_id, prompt_token_ids=row.token_ids, sampling=bounded)

    def _ended(self, row: EncodedRow, request: GenerationRequest, outcome: Outcome) -> tuple[ResultRow, str | None]:
        """The row's result and openai_results.RowAnswer."""
        if outcome.finish_reason is None or outcome.error is not None or outcome.finish_reason == "error":
            reason = outcome.error or "the engine gave no reason"
            return self._refused(row, reason)
        detokenizer = StreamDetokenizer.for_request(self._codec, request.sampling)
        result = ResultRow(
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
        answer = answer_of(row.request, result.variant, outcome.token_ids, outcome.logprobs, self._codec)
        return result, answer

    def _refused(self, row: EncodedRow, error: str) -> tuple[ResultRow, str | None]:
        result = ResultRow(
            id=row.id,
            prompt=row.prompt,
            text=None,
            prompt_tokens=len(row.token_ids),
            completion_tokens=0,
            finish_reason="error",
            variant=self._spec.variant.name,
            fingerprint=self._fingerprint,
            error=error,
        )
        return result, refusal_of(row.request)


def with_times(results: pa.Table, started_s: float, finished_s: float) -> pa.Table:
    """Beside the columns of the output, when this slice came to the engine and left it: what the job's rate is over."""
    for name, value in ((STARTED, started_s), (FINISHED, finished_s)):
        results = results.append_column(name, pa.array([value] * len(results), pa.float64()))
    return results


def row_seed(seed: int, row_id: str) -> int:
    """A row's own seed: equal prompts in other rows draw other tokens, and the order of rows changes nothing."""
    digest = hashlib.blake2b(row_id.encode(), key=seed.to_bytes(8, "big", signed=True), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def encoded_table(rows: Iterable[EncodedRow], places: pa.StructArray) -> pa.Table:
    """ENCODED_SCHEMA; `places` of the rows."""
    rows = list(rows)
    columns = {each.name: [getattr(row, each.name) for row in rows] for each in fields(EncodedRow)}
    return pa.Table.from_pydict(columns | {PLACE: places}, ENCODED_SCHEMA)
