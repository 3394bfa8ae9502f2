"""ReplicaView: what a router knows of one replica, its last Load and the dispatches since; it predicts nothing."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from cluster.load import Load
from cluster.prediction import Backlog
from cluster.slo import Objective

SETTLED_S = 0.05
"""A Load that comes in this soon after a dispatch may have left before the dispatch arrived, so both are counted."""
RATIO_SAMPLES = 5
RATIO_LOW, RATIO_HIGH = 0.25, 4.0
"""Beyond them a ratio says that something else is wrong (a swapped-out process, a wrong profile)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Dispatch:
    """A request that this router sent and that has not ended."""

    at_s: float
    prompt_tokens: int
    max_tokens: int
    tpot_ms: float | None
    """What it was promised."""
    objective: Objective = "latency"


@dataclass(frozen=True, slots=True, kw_only=True)
class ThroughputPart:
    """Of a backlog, what requests of a throughput objective are: those of a latency objective run before them."""

    sequences: int
    """Running."""
    kv_tokens: int
    waiting: int
    prefill_tokens: int
    promised_tokens: int


@dataclass(slots=True, kw_only=True)
class ReplicaView:
    load: Load
    received_s: float
    """By the router's clock; hosts' clocks differ."""
    live: dict[str, Dispatch] = field(default_factory=dict)
    unseen: set[str] = field(default_factory=set)
    """Of those, the ones no Load can have counted yet."""
    _promises: Counter[float] = field(default_factory=Counter)
    """How many live requests were promised each TPOT."""
    _num_throughput: int = 0
    """Of the live requests."""

    def received(self, load: Load, now_s: float) -> None:
        self.load = load
        self.received_s = now_s
        if self.unseen:
            self.unseen = {name for name in self.unseen if now_s - self.live[name].at_s < SETTLED_S}

    def dispatched(self, request_id: str, dispatch: Dispatch) -> None:
        self.finished(request_id)
        self.live[request_id] = dispatch
        self.unseen.add(request_id)
        self._num_throughput += dispatch.objective == "throughput"
        if dispatch.tpot_ms is not None:
            self._promises[dispatch.tpot_ms] += 1

    def finished(self, request_id: str) -> None:
        dispatch = self.live.pop(request_id, None)
        self.unseen.discard(request_id)
        if dispatch is None:
            return
        self._num_throughput -= dispatch.objective == "throughput"
        if dispatch.tpot_ms is not None:
            self._promises[dispatch.tpot_ms] -= 1
            if not self._promises[dispatch.tpot_ms]:
                del self._promises[dispatch.tpot_ms]

    def is_followed_by_restart(self, load: Load) -> bool:
        """Whether an engine that knows nothing of what was before tells this later Load: its counts began anew."""
        return load.prompt_tokens < self.load.prompt_tokens and load.measured_at_s > self.load.measured_at_s

    def age_s(self, now_s: float) -> float:
        return now_s - self.received_s

    def tightest_tpot_ms(self) -> float | None:
        return min(self._promises, default=None)

    def backlog(self, *, fresh: bool, num_ingresses: int) -> Backlog:
        """The Load and the dispatches since, as many again from each other ingress; of a stale Load no rates.

        Without background requests, as a Load is: they give way.
        """
        since = self.online_since()
        prompts = num_ingresses * sum(dispatch.prompt_tokens for dispatch in since)
        outputs = num_ingresses * sum(dispatch.max_tokens for dispatch in since)
        load = self.load
        return Backlog(
            kv_capacity_tokens=load.kv_tokens_capacity,
            kv_used_tokens=load.kv_tokens_used,
            kv_promised_tokens=load.promised_kv_tokens + prompts + outputs,
            decoding=load.decode_sequences,
            waiting=load.waiting_requests + num_ingresses * len(since),
            prefill_tokens=load.waiting_prefill_tokens + prompts,
            prefill_tokens_per_s=load.prefill_tokens_per_s if fresh else 0.0,
            step_time_ratio=self._ratio() if fresh else 1.0,
        )

    def online_since(self) -> list[Dispatch]:
        """Those that no Load can have counted, but for background ones."""
        since = (self.live[name] for name in self.unseen)
        return [dispatch for dispatch in since if dispatch.objective != "background"]

    def background_requests(self, num_ingresses: int) -> int:
        """Running and waiting, to this router's knowledge."""
        since = sum(self.live[name].objective == "background" for name in self.unseen)
        return self.load.background_sequences + self.load.background_waiting + num_ingresses * since

    @property
    def has_throughput(self) -> bool:
        load = self.load
        return bool(load.throughput_sequences or load.throughput_waiting or self._num_throughput)

    def of_throughput(self, num_ingresses: int) -> ThroughputPart:
        load = self.load
        since = [self.live[name] for name in self.unseen if self.live[name].objective == "throughput"]
        prompts = num_ingresses * sum(dispatch.prompt_tokens for dispatch in since)
        outputs = num_ingresses * sum(dispatch.max_tokens for dispatch in since)
        return ThroughputPart(
            sequences=load.throughput_sequences,
            kv_tokens=load.throughput_kv_tokens,
            waiting=load.throughput_waiting + num_ingresses * len(since),
            prefill_tokens=load.throughput_prefill_tokens + prompts,
            promised_tokens=load.throughput_promised_tokens + prompts + outputs,
        )

    def _ratio(self) -> float:
        if self.load.step_samples < RATIO_SAMPLES:
            return 1.0
        return min(RATIO_HIGH, max(RATIO_LOW, self.load.step_time_ratio))
