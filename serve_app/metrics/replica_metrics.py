"""ReplicaMetrics: a replica's Load as gauges, and the growth of its counts; it asks no engine."""

from __future__ import annotations

from cluster.load import Load
from cluster.metric_catalogue import CATALOGUE
from serve_app.metrics.meter import Meter

GAUGES = {
    CATALOGUE.kv_capacity: "kv_tokens_capacity",
    CATALOGUE.kv_used: "kv_tokens_used",
    CATALOGUE.kv_cached: "kv_tokens_cached",
    CATALOGUE.kv_promised: "promised_kv_tokens",
    CATALOGUE.decoding: "decode_sequences",
    CATALOGUE.queued: "waiting_requests",
    CATALOGUE.prefill_waiting: "waiting_prefill_tokens",
    CATALOGUE.background: "background_sequences",
    CATALOGUE.step_time_ratio: "step_time_ratio",
    CATALOGUE.engine_memory: "rss_bytes",
}
COUNTERS = {
    CATALOGUE.computed_tokens: "prompt_tokens",
    CATALOGUE.cached_tokens: "prefix_hit_tokens",
    CATALOGUE.decoded_tokens: "generated_tokens",
    CATALOGUE.preemptions: "preemptions",
    CATALOGUE.steps: "steps",
    CATALOGUE.busy_seconds: "busy_s",
    CATALOGUE.step_sequences: "step_sequences",
}


class ReplicaMetrics:
    def __init__(self, meter: Meter, variant: str, share: float, now_s: float) -> None:
        """`share` of an accelerator."""
        self._meter = meter
        self._variant = variant
        self._share = share
        self._told_s = now_s
        self._counted: dict[str, float] = dict.fromkeys(COUNTERS.values(), 0)
        for metric in (*COUNTERS, CATALOGUE.accelerator_seconds):
            meter.begin(metric, variant=variant)

    def tell(self, load: Load, now_s: float) -> None:
        """Once a second or so: scrapes are seconds apart."""
        for metric, field in GAUGES.items():
            self._meter.set(metric, float(getattr(load, field)), variant=self._variant)
        for metric, field in COUNTERS.items():
            count = getattr(load, field)
            self._meter.add(metric, count - self._counted[field], variant=self._variant)
            self._counted[field] = count
        self._meter.add(CATALOGUE.accelerator_seconds, (now_s - self._told_s) * self._share, variant=self._variant)
        self._told_s = now_s
