"""LLM.int8()'s outlier threshold swept: how much is kept in 16 bits, and at which perplexity; it knows no engine.

Dettmers et al. 2022, section 3.2 and figure 3: a column of the activations with a value beyond the threshold is
multiplied in 16 bits, for all rows of the batch. The engine takes each row's own outliers apart instead (kernels/
int8_matmul.py), so that a row's result does not depend on its batch; both are swept.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from batch_jobs.bench.reference_model import ReferenceModel
from kernels.int8_matmul import PackedInt8, int8_matmul, pack_int8, quantize_int8


@dataclass(frozen=True, slots=True, kw_only=True)
class ThresholdScore:
    threshold: float
    """Infinity: plain absmax int8, row by row, nothing kept."""
    perplexity_by_row: float
    """Each row's own outliers apart: what the engine computes."""
    perplexity_by_column: float
    """Columns apart for all rows of a window: what the paper and bitsandbytes compute."""
    values_kept: float
    """Share of activations beyond the threshold."""
    columns_kept: float
    """Share of columns with one of them, in windows of `context` tokens."""


def sweep(
    model: ReferenceModel, token_ids: list[int], context: int, thresholds: Sequence[float], progress: Callable[[], None]
) -> list[ThresholdScore]:
    packed = {name: pack_int8(quantize_int8(weight)) for name, weight in model.weights().items()}
    return [_score(model, packed, token_ids, context, threshold, progress) for threshold in thresholds]


def _score(
    model: ReferenceModel,
    packed: dict[str, PackedInt8],
    token_ids: list[int],
    context: int,
    threshold: float,
    progress: Callable[[], None],
) -> ThresholdScore:
    kept = _Kept(threshold)

    def by_row(name: str, x: Tensor) -> Tensor:
        kept.count(x)
        return int8_matmul(x, packed[name], None, threshold)

    def by_column(name: str, x: Tensor) -> Tensor:
        outlier = (x.abs() >= threshold).any(dim=0)
        regular = int8_matmul(x.masked_fill(outlier, 0.0), packed[name], None, None)
        return regular + x[:, outlier] @ model.linears[name].weight[:, outlier].T

    with model.with_products(by_row):
        rows = model.perplexity(token_ids, context)
        progress()
    if math.isinf(threshold):
        columns = rows
    else:
        with model.with_products(by_column):
            columns = model.perplexity(token_ids, context)
    progress()
    return ThresholdScore(
        threshold=threshold,
        perplexity_by_row=rows,
        perplexity_by_column=columns,
        values_kept=kept.values / kept.num_values,
        columns_kept=kept.columns / kept.num_columns,
    )


class _Kept:
    """Counts what lies beyond a threshold."""

    def __init__(self, threshold: float) -> None:
        self._threshold = threshold
        self.values = self.columns = self.num_values = self.num_columns = 0

    def count(self, x: Tensor) -> None:
        outlier = x.abs() >= self._threshold
        self.values += int(torch.count_nonzero(outlier))
        self.columns += int(outlier.any(dim=0).sum())
        self.num_values += outlier.numel()
        self.num_columns += outlier.shape[1]
