"""Load: what a replica says of itself, the one type that router, planner and metrics read; it decides nothing."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """A replica's state after a step.

    `measured_at_s` is Unix time on the replica's host; a reader that needs an age keeps the time of receipt
    itself, because clocks of hosts differ.
    """

    replica_id: str
    variant: str
    measured_at_s: float
    kv_tokens_capacity: int
    kv_tokens_used: int
    """Slots of blocks held by live sequences; a block of 16 counts 16. Where background sequences run, too, one that is
    held by several counts as often, up to the blocks that are held at all."""
    kv_tokens_cached: int = 0
    """Slots of blocks that no sequence holds but whose contents the prefix cache can still give; they are free."""
    decode_sequences: int = 0
    waiting_requests: int = 0
    waiting_prefill_tokens: int = 0
    """Prompt tokens admitted and not yet computed, queued or half done."""
    promised_kv_tokens: int = 0
    """Slots that admitted requests may still come to need (prompt + max_tokens, less what they hold)."""
    throughput_sequences: int = 0
    """Running, prefilled or decoding: of a throughput objective, as the further four, which are parts of the above. A
    request of a latency objective runs before them and takes their places and blocks where it needs them."""
    throughput_kv_tokens: int = 0
    throughput_waiting: int = 0
    throughput_prefill_tokens: int = 0
    throughput_promised_tokens: int = 0
    background_sequences: int = 0
    """Running: of a background objective, as the further three. In no other figure but the counts since the start,
    because whoever comes takes their steps, places and blocks."""
    background_waiting: int = 0
    background_prefill_tokens: int = 0
    background_kv_tokens: int = 0
    prefill_tokens_per_s: float = 0.0
    decode_tokens_per_s: float = 0.0
    step_time_ratio: float = 1.0
    """Measured / predicted step time, smoothed over the last steps; 1 until measured."""
    step_samples: int = 0
    preemptions: int = 0
    prefix_hit_tokens: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    steps: int = 0
    busy_s: float = 0.0
    """In which a step ran."""
    step_sequences: int = 0
    """Summed over the steps, background ones included."""
    rss_bytes: int = 0
    """Resident set of the engine process."""

    @property
    def kv_tokens_free(self) -> int:
        return self.kv_tokens_capacity - self.kv_tokens_used
