"""CostModel: how long a step takes, by the roofline and corrected by a Profile; it knows no request, replica or clock.

step(shape)  = t0 + max(weights_read / bandwidth, 2 x params_read x (B + chunk) / peak_of_variant)
                  + max(kv_read / bandwidth, attention_flops / peak)
prefill(n)   : flops = 2 x params x n + 2 x layers x heads x head_dim x n^2
B_ridge      = peak_of_variant x weights_read / (2 x params_read x bandwidth)
B_best       = the smallest batch within 5 % of the best feasible tokens/s: its KV fits and its step meets TPOT

The linears and the attention are two phases one after the other, so their times add; inside a phase bytes and
arithmetic overlap, so the larger counts.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cluster.accelerators import Accelerator
from cluster.engine_spec import EngineSpec
from cluster.model_shape import ModelShape
from cluster.profile import Profile
from cluster.profile import StepShape as StepShape
from cluster.step_fit import Machine, Phases, Roofline, fit
from cluster.variants import DTYPE_BYTES, Variant

Bound = Literal["memory", "arithmetic", "overhead"]
Limit = Literal["memory", "arithmetic", "overhead", "KV capacity", "TPOT", "max_sequences"]

PRIOR_T0_S = {"gpu": 0.0018, "cpu": 0.001}
"""Before there is a profile. GPU: what a full engine's graph-captured step takes beyond its floor (Llama-3.1-8B on an
H100: 1.8, 1.7, 2.7 ms for bf16, fp8, int4). CPU: scheduling and sampling of one small batch."""

BEST_BATCH_SLACK = 0.05
NEAR_THE_END = 0.9
"""Where tokens/s still rises with the batch, the smallest within 5 % of the best is about 0.95 of the last one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTime:
    """A step's time by phase; with a profile the phases are the measured machine's, not the data sheet's."""

    t0_s: float
    linear_s: float
    attention_s: float
    bound: Bound
    """What takes most of it."""

    @property
    def total_s(self) -> float:
        return self.t0_s + self.linear_s + self.attention_s


@dataclass(frozen=True, slots=True, kw_only=True)
class BestBatch:
    batch: int
    tokens_per_s: float
    step_s: float
    limit: Limit
    """What keeps a larger batch from being better, or from being possible."""
    arithmetic: str


class CostModel:
    """One variant of one model on a share of one accelerator."""

    def __init__(
        self,
        shape: ModelShape,
        variant: Variant,
        accelerator: Accelerator,
        *,
        share: float = 1.0,
        kv_dtype: Literal["bf16", "fp32"] = "bf16",
        profile: Profile | None = None,
    ) -> None:
        self.shape = shape
        self.variant = variant
        self.accelerator = accelerator
        self.share = share
        self.bandwidth = accelerator.bandwidth_bytes_per_s * share
        self.peak = accelerator.peak(variant.flops_dtype) * share
        self.weights_read_bytes = variant.read_bytes(shape, accelerator.kind)
        self.params_read = shape.block_params + shape.embedding_params
        self.kv_bytes_per_token = shape.kv_bytes_per_token(DTYPE_BYTES[kv_dtype])
        self.weights_s = self.weights_read_bytes / self.bandwidth
        self.linear_token_s = 2 * self.params_read / self.peak
        self.kv_token_s = self.kv_bytes_per_token / self.bandwidth
        # 4 flops a pair of tokens and channel: a multiply-add for the score, one for the sum. Causal, so token i of a
        # chunk meets its context and i of the chunk: n^2 / 2 pairs.
        attention_peak = accelerator.peak(variant.dtype) * share
        self.pair_s = 4 * shape.layers * shape.heads * shape.head_dim / attention_peak
        self.machine = self._measured(profile)

    @classmethod
    def for_engine(cls, spec: EngineSpec) -> CostModel:
        """Of an engine's own spec, corrected by the profile that it names."""
        if spec.accelerator is None:
            raise ValueError(f"{spec.replica_id}: its spec names no accelerator, so nothing is known of its speed")
        return cls(
            ModelShape.from_hf_config(Path(spec.checkpoint), spec.max_context),
            spec.variant,
            spec.accelerator,
            share=spec.share,
            kv_dtype=spec.kv_dtype,
            profile=Profile.from_json(Path(spec.profile_path).read_text()) if spec.profile_path else None,
        )

    @property
    def price_per_s(self) -> float:
        """Dollars for this share."""
        return self.accelerator.price_per_hour * self.share / 3600

    def step_s(self, step: StepShape) -> float:
        return self.machine.parts(step, self._phases(step)).total_s

    def explain(self, step: StepShape) -> StepTime:
        phases = self._phases(step)
        parts = self.machine.parts(step, phases)
        in_memory = (parts.linear_s if parts.linears_read else 0) + (parts.attention_s if phases.attention_reads else 0)
        in_arithmetic = parts.linear_s + parts.attention_s - in_memory
        bound: Bound = "memory" if in_memory >= in_arithmetic else "arithmetic"
        if parts.t0_s > max(in_memory, in_arithmetic):
            bound = "overhead"
        return StepTime(t0_s=parts.t0_s, linear_s=parts.linear_s, attention_s=parts.attention_s, bound=bound)

    def decode_step_s(self, batch: int, context_tokens: float) -> float:
        """A step of `batch` decodes of that context each."""
        return self.step_s(decodes(batch, context_tokens))

    def prefill_s(self, tokens: int, context_tokens: int = 0) -> float:
        """One step with this prompt, or this piece of one, alone."""
        return self.step_s(
            StepShape(decode_sequences=0, kv_tokens=0, prefill_tokens=tokens, prefill_context_tokens=context_tokens)
        )

    def ridge_batch(self) -> float:
        """The batch at which the linears' arithmetic takes as long as reading their weights; KV ignored."""
        return self.peak * self.weights_read_bytes / (2 * self.params_read * self.bandwidth)

    def cost_per_million_tokens(self, batch: int, context_tokens: float) -> float:
        """Dollars for a million generated tokens, decoding only."""
        return self.price_per_s * self.decode_step_s(batch, context_tokens) / batch * 1e6

    def best_batch(
        self,
        context_tokens: int,
        *,
        kv_capacity_tokens: int,
        tpot_s: float | None = None,
        max_sequences: int | None = None,
        block_size: int = 16,
    ) -> BestBatch:
        """For sequences that hold `context_tokens` each on average."""
        held = -(-context_tokens // block_size) * block_size
        fitting = max(1, kv_capacity_tokens // held)
        largest = min(fitting, max_sequences or fitting)
        steps = [self.decode_step_s(batch, context_tokens) for batch in range(1, largest + 1)]
        feasible = [s for s in steps if tpot_s is None or s <= tpot_s] or steps[:1]
        rates = [(batch + 1) / step_s for batch, step_s in enumerate(steps[: len(feasible)])]
        batch = next(i for i, rate in enumerate(rates) if rate >= (1 - BEST_BATCH_SLACK) * max(rates)) + 1
        limit = self._limit(batch, len(feasible), len(steps), context_tokens, fitting == largest)
        step_s = steps[batch - 1]
        rate = batch / step_s
        arithmetic = (
            f"KV: {kv_capacity_tokens} tokens / {held} a sequence = {kv_capacity_tokens // held} sequences; "
            f"{batch} / {step_s * 1e3:.1f} ms = {rate:.0f} tokens/s, "
            f"the smallest batch within {BEST_BATCH_SLACK:.0%} of the best, {max(rates):.0f} "
            f"at {rates.index(max(rates)) + 1}; limited by {limit}"
        )
        return BestBatch(batch=batch, tokens_per_s=rate, step_s=step_s, limit=limit, arithmetic=arithmetic)

    def _limit(self, batch: int, feasible: int, tried: int, context_tokens: int, kv_limits: bool) -> Limit:
        """Throughput that still rises where the batches end is limited by that end, else by what bounds the step."""
        if batch < NEAR_THE_END * feasible:
            return self.explain(decodes(batch, context_tokens)).bound
        if feasible < tried:
            return "TPOT"
        return "KV capacity" if kv_limits else "max_sequences"

    def _phases(self, step: StepShape) -> Phases:
        """Ideal times on this share."""
        tokens = step.decode_sequences + step.prefill_tokens
        pairs = step.prefill_tokens * (step.prefill_context_tokens + step.prefill_tokens / 2)
        return Phases(
            decode_tokens=step.decode_sequences,
            prefill_tokens=step.prefill_tokens,
            weights_s=self.weights_s,
            linear_flops_s=tokens * self.linear_token_s,
            decode_read_s=step.kv_tokens * self.kv_token_s,
            decode_flops_s=step.kv_tokens * self.pair_s,
            prefill_read_s=step.prefill_context_tokens * self.kv_token_s,
            prefill_flops_s=pairs * self.pair_s,
        )

    def _measured(self, profile: Profile | None) -> Machine:
        if profile is None:
            return Roofline(t0_s=PRIOR_T0_S[self.accelerator.kind])
        return fit([(point, self._phases(point.shape)) for point in profile.points])


def decodes(batch: int, context_tokens: float) -> StepShape:
    return StepShape(decode_sequences=batch, kv_tokens=round(batch * context_tokens))
