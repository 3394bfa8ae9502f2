"""JobMetrics: a batch job's ended rows and tokens as Ray's counters; it knows no engine and no file."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from cluster.metric_catalogue import CATALOGUE, Metric


class JobMetrics:
    """In a worker of Ray, whose agent exports them where the fleet's are."""

    def __init__(self, variant: str) -> None:
        self._variant = variant
        self._rows, self._tokens = _counter(CATALOGUE.job_rows), _counter(CATALOGUE.job_tokens)
        self._add(rows=0, errors=0, prompt_tokens=0, generated_tokens=0)

    def ended(self, results: pa.Table) -> None:
        """A slice of batch_jobs.writing.RESULT_SCHEMA."""
        self._add(
            rows=len(results),
            errors=len(results) - results["error"].null_count,
            prompt_tokens=pc.sum(results["prompt_tokens"]).as_py() or 0,
            generated_tokens=pc.sum(results["completion_tokens"]).as_py() or 0,
        )

    def _add(self, *, rows: int, errors: int, prompt_tokens: int, generated_tokens: int) -> None:
        # inc() takes no 0, though the recorder behind it does, and a series that is not there yet has no rate.
        for outcome, count in (("answer", rows - errors), ("error", errors)):
            self._rows._record(float(count), tags={"variant": self._variant, "outcome": outcome})
        for kind, count in (("prompt", prompt_tokens), ("generated", generated_tokens)):
            self._tokens._record(float(count), tags={"variant": self._variant, "kind": kind})


def _counter(metric: Metric) -> Any:
    from ray.util.metrics import Counter

    return Counter(metric.name, description=metric.help, tag_keys=metric.labels)
