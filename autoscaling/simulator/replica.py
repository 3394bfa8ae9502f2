"""SimulatedReplica: one replica in simulated time: what it admits, when its steps end, its Load; it knows no fleet."""

from __future__ import annotations

from math import inf

from autoscaling.simulator.admission import WaitingRoom, retry_after_s
from autoscaling.simulator.batching import Batching, ScheduledStep, Stepped
from autoscaling.simulator.kv_blocks import KvBlocks
from autoscaling.simulator.recent_rate import RecentRate
from autoscaling.simulator.sequence import SimulatedSequence, shared_blocks
from autoscaling.simulator.step_times import StepTimes
from autoscaling.sustained import ReplicaCapability
from cluster.load import Load
from cluster.rank import rank
from cluster.slo import Objective


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
        num_blocks = capability.kv_capacity_tokens // block_size
        self._most_repeats = most_repeats
        self._block_size = block_size
        self._capacity_tokens = num_blocks * block_size
        self._waiting_room = WaitingRoom(limits, self._capacity_tokens)
        self._times = step_times
        self._batching = Batching(KvBlocks(num_blocks, block_size), limits)
        self._step: ScheduledStep | None = None
        self._repeats = 0
        self._started_s = 0.0
        self._cut_s = -1.0
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
        objective: Objective = "latency",
        deadline_s: float | None = None,
        prefix: tuple[int, ...] = (),
    ) -> float | None:
        """None where it is admitted, else when to come again, in seconds; `deadline_s` from now on."""
        batching = self._batching
        if not self._waiting_room.admits(
            objective,
            prompt_tokens,
            waiting_tokens=batching.waiting_prefill_tokens,
            num_requests=batching.num_requests,
        ):
            return retry_after_s(self.load(now_s))
        self._cut(now_s)
        number = self._num_admitted
        self._num_admitted += 1
        batching.add(
            SimulatedSequence(
                request_id=request_id,
                rank=rank(
                    priority=priority, objective=objective, deadline_s=deadline_s, arrived_s=now_s, number=number
                ),
                num_tokens=prompt_tokens,
                end_tokens=prompt_tokens + output_tokens,
                needed_tokens=prompt_tokens + max_tokens,
                is_throughput=objective == "throughput",
                shared_blocks=shared_blocks(prefix, prompt_tokens, self._block_size) if prefix else (),
            )
        )
        if self._step is None:
            self._begin(now_s)
        return None

    def finish_steps(self) -> Stepped:
        """At `ends_s`: what the steps brought; the next ones are under way then."""
        step, now_s = self._step, self.ends_s
        assert step is not None, f"{self.replica_id} has no step to finish"
        self.busy_s += now_s - self._started_s
        self._prefill_rate.record(step.prefill_tokens, now_s)
        self._decode_rate.spread(step.decode_sequences * self._repeats, self._started_s, now_s)
        done = self._batching.complete(step, self._repeats)
        self._begin(now_s)
        return done

    def load(self, now_s: float) -> Load:
        """As of the last step that ended, with the blocks of the one under way."""
        batching, size = self._batching, self._block_size
        pool, decoding, throughput = batching.pool, batching.decoding, batching.throughput
        num_decoding = decoding.growth.num_sequences
        further = late_further = 0
        begun = self._repeats
        if begun > 1 and self._cut_s != now_s:
            begun, _ = self._begun(now_s)
        if begun > 1:
            further = decoding.growth.after(decoding.step, begun)
            late_further = decoding.growth_of_throughput.after(decoding.step, begun)
        held_blocks, used_blocks = batching.held_blocks + further, pool.num_used + further
        late_held = throughput.held_blocks + late_further
        return Load(
            replica_id=self.replica_id,
            variant=self.capability.variant,
            measured_at_s=now_s,
            kv_tokens_capacity=self._capacity_tokens,
            kv_tokens_used=used_blocks * size,
            kv_tokens_cached=min(pool.num_cached, pool.num_free - further) * size,
            decode_sequences=num_decoding,
            waiting_requests=len(batching.waiting),
            waiting_prefill_tokens=batching.waiting_prefill_tokens,
            promised_kv_tokens=max(0, batching.promised_tokens - held_blocks * size),
            throughput_sequences=throughput.num_running,
            throughput_kv_tokens=min(used_blocks, late_held) * size,
            throughput_waiting=throughput.num_waiting,
            throughput_prefill_tokens=throughput.waiting_prefill_tokens,
            throughput_promised_tokens=max(0, throughput.promised_tokens - late_held * size),
            prefill_tokens_per_s=self._prefill_rate.per_second(now_s),
            decode_tokens_per_s=self._decode_rate.per_second(
                now_s, under_way=num_decoding * max(0, begun - 1), since_s=self._started_s
            ),
            preemptions=batching.num_preemptions,
            prefix_hit_tokens=batching.num_prefix_hit_tokens,
        )

    def _begin(self, now_s: float) -> None:
        self._started_s, self._cut_s = now_s, -1.0
        step = self._step = self._batching.schedule()
        if step is None:
            self._repeats, self.ends_s = 0, inf
        elif step.chunks:
            self._repeats, self.ends_s = 1, now_s + self._times.mixed_s(step.shape)
        else:
            self._repeats = (
                step.most_repeats if self._most_repeats is None else min(step.most_repeats, self._most_repeats)
            )
            self.ends_s = now_s + self._times.decodes_s(step.decode_sequences, step.kv_tokens, self._repeats)

    def _cut(self, now_s: float) -> None:
        if self._repeats > 1 and self._cut_s != now_s:
            self._repeats, lasted_s = self._begun(now_s)
            self._cut_s, self.ends_s = now_s, self._started_s + lasted_s

    def _begun(self, now_s: float) -> tuple[int, float]:
        """Of the repeats under way those until now, the one that runs included, and how long they last."""
        step = self._step
        assert step is not None
        return self._times.steps_lasting(step.decode_sequences, step.kv_tokens, now_s - self._started_s, self._repeats)
