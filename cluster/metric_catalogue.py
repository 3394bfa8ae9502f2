"""Every metric of a fleet by name, kind and labels: documentation and dashboards are made of it; it records none.

Ray exports a name as `ray_NAME`, a counter with `_total` behind it, a histogram as `_bucket`, `_sum` and `_count`, and
adds `application`, `deployment` and `replica` to the labels of what runs in Ray Serve.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Literal

Kind = Literal["counter", "gauge", "histogram"]
Source = Literal["ingress", "replica", "planner", "job"]

FROM_MS_TO_MINUTES_S = (
    0.01,
    0.025,
    0.05,
    0.1,
    0.2,
    0.35,
    0.5,
    0.75,
    1.0,
    1.5,
    2.0,
    3.0,
    5.0,
    10.0,
    20.0,
    60.0,
    180.0,
    600.0,
)
"""TTFT limits lie between 0.2 and 5 s, where a quarter to a half more or less decides; a whole answer takes minutes."""
BETWEEN_TOKENS_S = (
    0.002,
    0.004,
    0.006,
    0.008,
    0.01,
    0.015,
    0.02,
    0.03,
    0.04,
    0.05,
    0.06,
    0.08,
    0.1,
    0.15,
    0.2,
    0.3,
    0.5,
    1.0,
)
"""From one sequence on an H100 (2.3 ms) to a full CPU; limits lie between 20 and 200 ms."""
FRAMEWORK_S = (0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.1, 0.2, 0.5, 1.0)
"""Some 3 ms on an idle host; what a slow ingress adds shows from 10 ms on."""
OFF_BY = (0.1, 0.25, 0.5, 0.67, 0.8, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0, 4.0, 10.0)
"""Of a ratio: evenly by factors around 1, where a prediction is right."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    name: str
    kind: Kind
    source: Source
    help: str
    labels: tuple[str, ...] = ()
    boundaries: tuple[float, ...] = ()
    """Upper bounds of a histogram's buckets, in the unit of its name."""

    @property
    def exported(self) -> str:
        """As Prometheus has it; of a histogram without _bucket, _sum, _count."""
        return f"ray_{self.name}{'_total' if self.kind == 'counter' else ''}"


@dataclass(frozen=True, kw_only=True)
class Catalogue:
    """One field a metric, so that a wrong name is found where it is written."""

    # Requests, counted where they arrive.
    offered: Metric = Metric(
        name="quantfleet_requests_offered",
        kind="counter",
        source="ingress",
        labels=("slo_class",),
        help="Requests that arrived with a valid body, refused ones included: what attainment is counted over.",
    )
    met: Metric = Metric(
        name="quantfleet_requests_met",
        kind="counter",
        source="ingress",
        labels=("slo_class",),
        help="Requests answered to the end within every limit of their class, at or above its quality floor.",
    )
    served: Metric = Metric(
        name="quantfleet_requests_served",
        kind="counter",
        source="ingress",
        labels=("slo_class", "variant"),
        help="Requests answered to the end.",
    )
    rejected: Metric = Metric(
        name="quantfleet_requests_rejected",
        kind="counter",
        source="ingress",
        labels=("slo_class",),
        help="Requests answered with 429: no replica had room within what their class allows.",
    )
    failed: Metric = Metric(
        name="quantfleet_requests_failed",
        kind="counter",
        source="ingress",
        labels=("slo_class",),
        help="Requests that ended with a server error before or after their first token.",
    )
    cancelled: Metric = Metric(
        name="quantfleet_requests_cancelled",
        kind="counter",
        source="ingress",
        labels=("slo_class",),
        help="Requests whose client went away before their end.",
    )
    degraded: Metric = Metric(
        name="quantfleet_requests_degraded",
        kind="counter",
        source="ingress",
        labels=("slo_class", "variant"),
        help="Requests sent where a limit or the quality floor was predicted to be missed.",
    )
    waiting: Metric = Metric(
        name="quantfleet_requests_waiting",
        kind="gauge",
        source="ingress",
        help="Requests in this ingress without a first token.",
    )
    ttft: Metric = Metric(
        name="quantfleet_ttft_seconds",
        kind="histogram",
        source="ingress",
        labels=("slo_class", "variant"),
        boundaries=FROM_MS_TO_MINUTES_S,
        help="From a request's arrival to its first token.",
    )
    tpot: Metric = Metric(
        name="quantfleet_tpot_seconds",
        kind="histogram",
        source="ingress",
        labels=("slo_class", "variant"),
        boundaries=BETWEEN_TOKENS_S,
        help="Time per output token after the first, the mean of an answer.",
    )
    duration: Metric = Metric(
        name="quantfleet_request_duration_seconds",
        kind="histogram",
        source="ingress",
        labels=("slo_class", "variant"),
        boundaries=FROM_MS_TO_MINUTES_S,
        help="From a request's arrival to its last token.",
    )
    queue: Metric = Metric(
        name="quantfleet_queue_seconds",
        kind="histogram",
        source="ingress",
        labels=("slo_class", "variant"),
        boundaries=FROM_MS_TO_MINUTES_S,
        help="Part of the TTFT: from a request's arrival to the step that begins its prompt, in ingress and replica.",
    )
    framework: Metric = Metric(
        name="quantfleet_framework_seconds",
        kind="histogram",
        source="ingress",
        labels=("variant",),
        boundaries=FRAMEWORK_S,
        help="Part of the TTFT that neither the queue nor the prompt's steps took: the way to the engine and back"
        " through Ray Serve, and what was left of the step under way there.",
    )
    ttft_ratio: Metric = Metric(
        name="quantfleet_ttft_prediction_ratio",
        kind="histogram",
        source="ingress",
        labels=("variant",),
        boundaries=OFF_BY,
        help="Measured over predicted TTFT; 1 where the router is right.",
    )
    tpot_ratio: Metric = Metric(
        name="quantfleet_tpot_prediction_ratio",
        kind="histogram",
        source="ingress",
        labels=("variant",),
        boundaries=OFF_BY,
        help="Measured over predicted TPOT; 1 where the router is right.",
    )
    prompt_tokens: Metric = Metric(
        name="quantfleet_prompt_tokens",
        kind="counter",
        source="ingress",
        labels=("slo_class", "variant"),
        help="Prompt tokens of requests that got a first token, cached ones included.",
    )
    generated_tokens: Metric = Metric(
        name="quantfleet_generated_tokens",
        kind="counter",
        source="ingress",
        labels=("slo_class", "variant"),
        help="Output tokens of requests that have ended, however they did.",
    )
    request_seconds: Metric = Metric(
        name="quantfleet_request_accelerator_seconds",
        kind="counter",
        source="ingress",
        labels=("slo_class", "variant"),
        help="Seconds of a whole accelerator that requests were predicted to take: prompts, and their parts of the"
        " decode steps. What replicas hold beyond the sum of it was idle.",
    )

    # What a replica's engine says of itself.
    kv_capacity: Metric = Metric(
        name="quantfleet_kv_tokens_capacity",
        kind="gauge",
        source="replica",
        labels=("variant",),
        help="Token slots of the KV cache.",
    )
    kv_used: Metric = Metric(
        name="quantfleet_kv_tokens_used",
        kind="gauge",
        source="replica",
        labels=("variant",),
        help="Token slots in blocks that running sequences hold.",
    )
    kv_cached: Metric = Metric(
        name="quantfleet_kv_tokens_cached",
        kind="gauge",
        source="replica",
        labels=("variant",),
        help="Token slots that no sequence holds and whose contents the prefix cache can still give; they are free.",
    )
    kv_promised: Metric = Metric(
        name="quantfleet_kv_tokens_promised",
        kind="gauge",
        source="replica",
        labels=("variant",),
        help="Token slots that admitted requests may still come to need: what reserving would hold beside the used.",
    )
    decoding: Metric = Metric(
        name="quantfleet_decode_sequences",
        kind="gauge",
        source="replica",
        labels=("variant",),
        help="Sequences that decode: the batch of a step.",
    )
    queued: Metric = Metric(
        name="quantfleet_replica_waiting_requests",
        kind="gauge",
        source="replica",
        labels=("variant",),
        help="Requests in a replica's waiting room.",
    )
    prefill_waiting: Metric = Metric(
        name="quantfleet_waiting_prefill_tokens",
        kind="gauge",
        source="replica",
        labels=("variant",),
        help="Prompt tokens admitted and not yet computed.",
    )
    background: Metric = Metric(
        name="quantfleet_background_sequences",
        kind="gauge",
        source="replica",
        labels=("variant",),
        help="Sequences of background requests that run on what the others leave.",
    )
    step_time_ratio: Metric = Metric(
        name="quantfleet_step_time_ratio",
        kind="gauge",
        source="replica",
        labels=("variant",),
        help="Measured over predicted step time, smoothed; 1 where the profile is right.",
    )
    computed_tokens: Metric = Metric(
        name="quantfleet_prefill_tokens",
        kind="counter",
        source="replica",
        labels=("variant",),
        help="Prompt tokens that the engine computed.",
    )
    cached_tokens: Metric = Metric(
        name="quantfleet_prefix_hit_tokens",
        kind="counter",
        source="replica",
        labels=("variant",),
        help="Prompt tokens that the prefix cache gave instead.",
    )
    decoded_tokens: Metric = Metric(
        name="quantfleet_decode_tokens",
        kind="counter",
        source="replica",
        labels=("variant",),
        help="Tokens that the engine generated, for requests that were cancelled too.",
    )
    steps: Metric = Metric(
        name="quantfleet_engine_steps",
        kind="counter",
        source="replica",
        labels=("variant",),
        help="Steps that the engine ran; busy seconds by steps is the mean step time.",
    )
    busy_seconds: Metric = Metric(
        name="quantfleet_engine_busy_seconds",
        kind="counter",
        source="replica",
        labels=("variant",),
        help="Seconds in which a step ran; its rate is the busy share of the engine.",
    )
    step_sequences: Metric = Metric(
        name="quantfleet_step_sequences",
        kind="counter",
        source="replica",
        labels=("variant",),
        help="Sequences in steps, summed over them; by steps it is the mean batch.",
    )
    preemptions: Metric = Metric(
        name="quantfleet_preemptions",
        kind="counter",
        source="replica",
        labels=("variant",),
        help="Sequences that lost their KV blocks to others and were computed again.",
    )
    engine_memory: Metric = Metric(
        name="quantfleet_engine_resident_bytes",
        kind="gauge",
        source="replica",
        labels=("variant",),
        help="Resident memory of the engine process on its host.",
    )
    accelerator_seconds: Metric = Metric(
        name="quantfleet_accelerator_seconds",
        kind="counter",
        source="replica",
        labels=("variant",),
        help="Seconds of whole accelerators that replicas have held, by their shares: what a fleet costs.",
    )

    # The planner's decisions, told by the first ingress.
    target_replicas: Metric = Metric(
        name="quantfleet_target_replicas",
        kind="gauge",
        source="planner",
        labels=("variant",),
        help="Replicas that the last scaling decision wants; until there is one, those of fleet.yaml.",
    )
    demand: Metric = Metric(
        name="quantfleet_planned_requests_per_second",
        kind="gauge",
        source="planner",
        labels=("slo_class",),
        help="Demand that the last decision planned for: the forecast of what arrives and what waits.",
    )
    needed_replicas: Metric = Metric(
        name="quantfleet_needed_replicas",
        kind="gauge",
        source="planner",
        labels=("slo_class", "variant", "bound"),
        help="Full replicas that a class needs on the variant planned for it, before headroom and rounding: by `kv`,"
        " what its sequences hold of a KV cache, by `rate`, what its tokens take of an engine within its limits.",
    )
    binding: Metric = Metric(
        name="quantfleet_binding_bound",
        kind="gauge",
        source="planner",
        labels=("slo_class", "variant", "bound"),
        help="1 for what ends the batch of a class there: kv, sequences, tpot, ttft or rate; 0 for the others.",
    )
    decision_age: Metric = Metric(
        name="quantfleet_scaling_decision_age_seconds",
        kind="gauge",
        source="planner",
        help="Since the last scaling decision.",
    )

    # A batch job, in the Ray cluster that it runs in.
    job_rows: Metric = Metric(
        name="quantfleet_job_rows",
        kind="counter",
        source="job",
        labels=("variant", "outcome"),
        help="Rows of batch jobs that have ended, with `answer` or with `error`.",
    )
    job_tokens: Metric = Metric(
        name="quantfleet_job_tokens",
        kind="counter",
        source="job",
        labels=("variant", "kind"),
        help="Tokens of batch jobs' ended rows, of kind `prompt` or `generated`.",
    )

    def __iter__(self) -> Iterator[Metric]:
        return (getattr(self, field.name) for field in fields(self))


CATALOGUE = Catalogue()
