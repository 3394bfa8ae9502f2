"""How many rows an engine runs at once: B_best for the lengths in the head of the input; it runs no step."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, islice

from batch_jobs.engine_choice import EngineChoice
from batch_jobs.input_files import InputFile
from batch_jobs.openai_requests import RowRequest
from batch_jobs.prompts import EncodedRow, PromptEncoder
from batch_jobs.reading import Columns, read_rows

HEAD_ROWS = 128
MAX_BATCH = 256
"""Past the batches a profile measures the model extrapolates, and a larger batch gains less than its rows wait."""
MIN_SLICE_ROWS, MAX_SLICE_ROWS = 4, 2048
MIN_SLICE_S = 0.25
"""Of the engine's work. Ray Data takes some 50 ms of a core for each slice, most of them in the driver."""
TOKEN_BYTES, ROW_BYTES = 4, 64
"""Of an encoded row in Arrow: a token id; offsets and the row's place."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LengthSample:
    """What the first rows tell of the others."""

    num_rows: int
    mean_prompt_tokens: float
    max_prompt_tokens: int
    mean_row_bytes: float
    """Of an encoded row, as it travels through the pipeline."""
    is_whole_input: bool
    mean_output_bound: float | None = None
    max_output_bound: int | None = None
    """Tokens, where rows bring their own bounds."""

    def output_tokens(self, max_tokens: int) -> int:
        """Of a row, as the job or the rows themselves bound it."""
        return max_tokens if self.mean_output_bound is None else max(1, round(self.mean_output_bound))


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchChoice:
    batch: int
    slice_rows: int
    step_s: float
    """Predicted, at B_best."""
    arithmetic: str


def sample_head(files: Iterable[InputFile], columns: Columns, encoder: PromptEncoder) -> LengthSample:
    head = islice(chain.from_iterable(read_rows(file, columns) for file in files), HEAD_ROWS + 1)
    rows = list(encoder.encode_all(head))
    is_whole = len(rows) <= HEAD_ROWS
    rows = rows[:HEAD_ROWS]
    lengths = [len(row.token_ids) for row in rows if row.error is None]
    bounds = list(_own_bounds(rows))
    return LengthSample(
        num_rows=len(rows),
        mean_prompt_tokens=sum(lengths) / len(lengths) if lengths else 0.0,
        max_prompt_tokens=max(lengths, default=0),
        mean_row_bytes=_mean_bytes(rows),
        is_whole_input=is_whole,
        mean_output_bound=sum(bounds) / len(bounds) if bounds else None,
        max_output_bound=max(bounds, default=None),
    )


def _own_bounds(rows: Iterable[EncodedRow]) -> Iterator[int]:
    for row in rows:
        sampling = RowRequest.decoded(row.request).sampling if row.request is not None else None
        if sampling is not None:
            yield sampling.max_tokens


def _mean_bytes(rows: list[EncodedRow]) -> float:
    size = sum(
        TOKEN_BYTES * len(row.token_ids) + len(row.id) + len(row.prompt) + len(row.request or "") for row in rows
    )
    return ROW_BYTES + size / len(rows) if rows else ROW_BYTES


def choose_batch(engine: EngineChoice, sample: LengthSample, max_tokens: int, num_rows: int) -> BatchChoice:
    """A sequence holds its prompt and, on average over its life, half of its output."""
    spec, share = engine.spec, engine.share
    context = max(1, round(sample.mean_prompt_tokens + max_tokens / 2))
    best = engine.cost_model.best_batch(
        context,
        kv_capacity_tokens=spec.kv_capacity_tokens,
        max_sequences=MAX_BATCH if share is None else min(MAX_BATCH, spec.max_sequences),
        block_size=spec.block_size,
    )
    num_engines = 1 if share is None else share.num_replicas
    batch = max(1, min(num_engines * best.batch, num_rows))
    arithmetic = (
        f"context = {sample.mean_prompt_tokens:.0f} prompt tokens (mean of {sample.num_rows} rows) "
        f"+ {max_tokens} / 2 = {context}; {best.arithmetic}"
    )
    if share is not None:
        arithmetic += f"; in each of the fleet's {num_engines} replicas, as far as they are idle"
    if batch < best.batch:
        arithmetic += f"; but the input has {num_rows} rows"
    return BatchChoice(batch=batch, slice_rows=slice_rows(batch), step_s=best.step_s, arithmetic=arithmetic)


def slice_rows(batch: int) -> int:
    """A quarter of a batch: with many slices in the engine, the end of one never leaves it less than full."""
    return max(MIN_SLICE_ROWS, -(-batch // 4))


def worthwhile_slice(engine: EngineChoice, choice: BatchChoice, sample: LengthSample, max_tokens: int) -> int:
    """The choice's slice, or more rows where the engine would be through with them in less than MIN_SLICE_S."""
    prefill_s = engine.cost_model.prefill_s(max(1, round(choice.batch * sample.mean_prompt_tokens)))
    batch_s = prefill_s + choice.step_s * sample.output_tokens(max_tokens)
    return max(choice.slice_rows, min(MAX_SLICE_ROWS, int(choice.batch * MIN_SLICE_S / batch_s)))
