"""A request as every floor sees it: sampling parameters, tokens out, admission; it knows no text and no tensors.

The dataclasses here are also the wire format between the engine process, the replica and the ingress (msgspec
encodes dataclasses as they are), so they hold plain values only.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, Protocol

from cluster.load import Load
from cluster.slo import Objective

FinishReason = Literal["stop", "length", "abort", "error"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How the next token is chosen and when to stop; the names and meanings are vLLM's.

    The order of application is: logit_bias, penalties, temperature, then min_p / top_k / top_p.
    """

    max_tokens: int = 16
    min_tokens: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    """0 keeps every token."""
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    """Over prompt and output tokens (CTRL, Keskar et al. 2019)."""
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: dict[int, float] = field(default_factory=dict)
    seed: int | None = None
    """The same seed gives the same text, whatever else is in the batch; None draws one at admission."""
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None
    """Number of top alternatives reported with each token; 0 reports the chosen token's own."""
    prompt_logprobs: int | None = None
    """The same for prompt tokens (position 0 has none)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRequest:
    """One sequence to generate."""

    request_id: str
    prompt_token_ids: list[int]
    sampling: SamplingParams
    priority: int = 0
    """The client's own; the smaller runs first, as cluster.rank has it."""
    objective: Objective = "latency"
    tpot_ms: float | None = None
    """Its limit, within which an engine may put background work beside it."""
    deadline_s: float | None = None
    """After its arrival in the engine, since clocks of hosts differ; below 0 where it is late already."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenLogprob:
    """A token, its log probability under the raw logits, and the most likely alternatives, best first."""

    token_id: int
    logprob: float
    top: list[tuple[int, float]] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenDelta:
    """What one engine step added to one request; the last one of a request carries finish_reason."""

    request_id: str
    token_ids: list[int]
    logprobs: list[TokenLogprob] | None = None
    prompt_logprobs: list[TokenLogprob | None] | None = None
    """Only on the first delta, and only when asked for."""
    cached_tokens: int = 0
    """Prompt tokens taken from the prefix cache; set on the first delta."""
    queued_s: float | None = None
    """From its arrival in the engine to the start of the step that ran its first chunk; set on the first delta, and
    None there too where it ended before it ran. A duration, since clocks of hosts differ."""
    prefill_s: float | None = None
    """From the start of that step to the first token; set with it."""
    finish_reason: FinishReason | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """A replica's answer to a request, with its load at that moment."""

    admitted: bool
    reason: str
    load: Load
    retry_after_s: float | None = None


class Engine(Protocol):
    """One replica's generation loop, as the replica process and the batch actors drive it.

    `add` raises ValueError for a request that no load would make valid (longer than the context, max_tokens < 1);
    a full engine is a Verdict, not an error. `step` returns what became known in this step, also for aborted requests
    (finish_reason "abort"); `abort` frees the blocks before it returns and ignores unknown ids.
    """

    def add(self, request: GenerationRequest) -> Verdict: ...

    def step(self) -> list[TokenDelta]: ...

    def abort(self, request_id: str) -> None: ...

    def load(self) -> Load: ...

    @property
    def has_work(self) -> bool: ...
