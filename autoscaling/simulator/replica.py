"""SimulatedReplica: one replica in simulated time: what it admits, when its steps end, its Load; it knows no fleet."""

from __future__ import annotations

from math import inf

from autoscaling.simulator.admission import admits, retry_after_s
from autoscaling.simulator.batching import Batching, ScheduledStep, Stepped
from autoscaling.simulator.kv_blocks import KvBlocks
from autoscaling.simulator.recent_rate import RecentRate
from autoscaling.simulator.sequence import SimulatedSequence, shared_blocks
from autoscaling.simulator.step_times import StepTimes
from autoscaling.sustained import ReplicaCapability
from cluster.load import Load


class SimulatedReplica:
    """Steps that only decode are made many at a time, until something could change what they do; an arrival cuts
    them short at the end of the step it falls into, where the engine would see it."""

    def __init__(
        self, replica_id: str, capability: ReplicaCapability, step_times: StepTimes, *, most_repeats: int | None = None
    ) -> None:
        """`most_repeats`: 1 makes every step by itself."""
        self.replica_id = replica_id
        self.capability = capability
        self.ends_s = inf
        """When the steps under way end."""
        self.busy_s = 0.0
        limits, block_size = capability.limits, capability.block_size
        self._most_repeats = most_repeats
        self._max_requests = limits.max_sequences + limits.max_waiting
        self._block_size = block_size
        self._times = step_times
        self._batching = Batching(KvBlocks(capability.kv_capacity_tokens // block_size, block_size), limits)
        self._step: ScheduledStep | None = None
        self._repeats = 0
        self._started_s = 0.0
        self._num_admitted = 0
        self._prefill_rate = RecentRate()
        self._decode_rate = RecentRate()

    @property
    def num_requests(self) -> int:
        return self._batching.num_requests

    @property
    def num_preemptions(self) -> int:
        return self._batching.num_preemptions

    @property
    def num_prefix_hit_tokens(self) -> int:
        return self._batching.num_prefix_hit_tokens

    @property
    def step(self) -> ScheduledStep | None:
        """Under way."""
        return self._step

    def offer(
        self,
        request_id: str,
        now_s: float,
        *,
        prompt_tokens: int,
        output_tokens: int,
        max_tokens: int,
        priority: int = 0,
        prefix: tuple[int, ...] = (),
    ) -> float | None:
        """None where it is admitted, else when to come again, in seconds."""
        batching = self._batching
        capacity = batching.pool.num_blocks * self._block_size
        waiting, num_requests = batching.waiting_prefill_tokens, batching.num_requests
        if not admits(prompt_tokens, waiting, capacity, num_requests=num_requests, max_requests=self._max_requests):
            return retry_after_s(self.load(now_s))
        self._cut(now_s)
        sequence = SimulatedSequence(
            request_id=request_id,
            rank=(priority, self._num_admitted),
            num_tokens=prompt_tokens,
            end_tokens=prompt_tokens + output_tokens,
            needed_tokens=prompt_tokens + max_tokens,
            shared_blocks=shared_blocks(prefix, prompt_tokens, self._block_size) if prefix else (),
        )
        self._num_admitted += 1
        batching.add(sequence)
        if self._step is None:
            self._begin(now_s)
        return None

    def finish_steps(self) -> Stepped:
        """At `ends_s`: what the steps brought; the next ones are under way then."""
        step, now_s = self._step, self.ends_s
        assert step is not None, f"{self.replica_id} has no step to finish"
        self.busy_s += now_s - self._started_s
        self._prefill_rate.record(step.shape.prefill_tokens, now_s)
        self._decode_rate.spread(step.shape.decode_sequences * self._repeats, self._started_s, now_s)
        done = self._batching.complete(step, self._repeats)
        self._begin(now_s)
        return done

    def load(self, now_s: float) -> Load:
        """As of the last step that ended, with the blocks of the one under way."""
        batching = self._batching
        begun = self._steps_begun(now_s) if self._repeats > 1 else 1
        further = batching.decoding.growth(begun) if begun > 1 else 0
        used = (batching.pool.num_used + further) * self._block_size
        held = (batching.held_blocks + further) * self._block_size
        return Load(
            replica_id=self.replica_id,
            variant=self.capability.variant,
            measured_at_s=now_s,
            kv_tokens_capacity=batching.pool.num_blocks * self._block_size,
            kv_tokens_used=used,
            kv_tokens_cached=min(batching.pool.num_cached, batching.pool.num_free - further) * self._block_size,
            decode_sequences=batching.decoding.num_sequences,
            waiting_requests=len(batching.waiting),
            waiting_prefill_tokens=batching.waiting_prefill_tokens,
            promised_kv_tokens=max(0, batching.promised_tokens - held),
            prefill_tokens_per_s=self._prefill_rate.per_second(now_s),
            decode_tokens_per_s=self._decode_rate.per_second(
                now_s, under_way=batching.decoding.num_sequences * (begun - 1), since_s=self._started_s
            ),
            preemptions=batching.num_preemptions,
            prefix_hit_tokens=batching.num_prefix_hit_tokens,
        )

    def _begin(self, now_s: float) -> None:
        self._started_s = now_s
        step = self._step = self._batching.schedule()
        if step is None:
            self._repeats, self.ends_s = 0, inf
            return
        if step.chunks:
            self._repeats, self.ends_s = 1, now_s + self._times.mixed_s(step.shape)
            return
        self._repeats = min(step.most_repeats, self._most_repeats or step.most_repeats)
        shape = step.shape
        self.ends_s = now_s + self._times.decodes_s(shape.decode_sequences, shape.kv_tokens, self._repeats)

    def _cut(self, now_s: float) -> None:
        if self._repeats > 1:
            self._repeats = self._steps_begun(now_s)
            assert self._step is not None
            shape = self._step.shape
            self.ends_s = self._started_s + self._times.decodes_s(
                shape.decode_sequences, shape.kv_tokens, self._repeats
            )

    def _steps_begun(self, now_s: float) -> int:
        """Of the repeats under way, the one that runs now included."""
        assert self._step is not None
        shape = self._step.shape
        return self._times.steps_lasting(
            shape.decode_sequences, shape.kv_tokens, now_s - self._started_s, self._repeats
        )
