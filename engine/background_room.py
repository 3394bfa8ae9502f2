"""How much background work fits into a step beside the online requests of an engine; it schedules nothing.

Background work gives way within one step: while an online prompt waits or is computed it gets none of the step. Beside
online decodes it gets as much as keeps every one of them at half of its TPOT limit, measured over its answer so far, so
the other half stays for the prompts of later online requests, which the router counts on; and nothing until an answer
has saved up what such prompts may take of a short one. Alone it gets steps that a request which comes in their middle
can wait for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from collections.abc import Sequence as Items
from dataclasses import dataclass, replace
from math import inf

from cluster.profile import StepShape
from engine.sequence import Sequence

TPOT_SHARE = 0.5
"""Of an online request's limit: what its tokens may take on average where background work shares their steps."""
SAVED_LIMITS = 1.0
"""TPOT limits that an answer has saved up before it shares a step. Shared from the first token on, steps double the
time in which a later prompt may fall into an answer of three tokens, which cannot make up for it: of answers of 16
tokens in the mean 4 % then missed 60 ms beside a job, and 1.4 % alone."""
PROMPT_TOKENS = 16
"""A prompt is cut into multiples of it; alone and at the least it advances by so many a step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BackgroundRoom:
    predict_step_s: Callable[[StepShape], float] | None = None
    """As measured lately; None: unknown, and then there is no room beside online requests."""
    alone_s: float = inf
    """The longest step without online requests, and the longest with them."""

    def limit_s(self, decoding: Iterable[Sequence], now_s: float) -> float:
        """The longest that a step with these online decodes may be made by what is put beside them; 0: by nothing.

        A request without a TPOT limit was promised as much as there is.
        """
        limit_s, is_alone = self.alone_s, True
        for sequence in decoding:
            is_alone = False
            limit_s = min(limit_s, _limit_s(sequence, now_s))
        return limit_s if is_alone or self.predict_step_s is not None else 0.0

    def decodes(self, shape: StepShape, sequences: Items[Sequence], limit_s: float) -> int:
        """How many of these, the first ones, decode beside `shape`."""
        predict = self.predict_step_s
        if predict is None or limit_s == inf:
            return len(sequences)
        contexts = [0]
        for sequence in sequences:
            contexts.append(contexts[-1] + sequence.num_tokens)

        def step_s(count: int) -> float:
            decodes, kv_tokens = shape.decode_sequences + count, shape.kv_tokens + contexts[count]
            return predict(replace(shape, decode_sequences=decodes, kv_tokens=kv_tokens))

        return _most(len(sequences), limit_s, step_s)

    def prompt_tokens(self, shape: StepShape, start: int, most: int, limit_s: float) -> int:
        """Of a prompt whose first `start` tokens are computed, how many beside `shape`: `most` or fewer."""
        predict = self.predict_step_s
        if predict is None or limit_s == inf:
            return most

        def step_s(count: int) -> float:
            tokens, context = min(most, count * PROMPT_TOKENS), shape.prefill_context_tokens + start
            return predict(replace(shape, prefill_tokens=shape.prefill_tokens + tokens, prefill_context_tokens=context))

        return min(most, PROMPT_TOKENS * _most(-(-most // PROMPT_TOKENS), limit_s, step_s))


def _limit_s(sequence: Sequence, now_s: float) -> float:
    """What the sequence leaves for a step: on average over its answer, and never more than one limit for a token."""
    tpot_ms = sequence.request.tpot_ms
    if tpot_ms is None:
        return 0.0
    tpot_s, tokens_s = tpot_ms / 1e3, 0.0 if sequence.first_token_s is None else now_s - sequence.first_token_s
    num_tokens = max(1, sequence.num_output_tokens + sequence.num_pending_tokens)
    # The steps that are on their way take as much of what is left as this one may.
    left_s = ((TPOT_SHARE * num_tokens - SAVED_LIMITS) * tpot_s - tokens_s) / (1 + sequence.num_pending_tokens)
    return min(tpot_s, max(0.0, left_s))


def _most(count: int, limit_s: float, step_s: Callable[[int], float]) -> int:
    """The largest number up to `count` whose step stays within the limit, where a larger one takes no less time."""
    if count and step_s(count) <= limit_s:
        return count
    low, high = 0, count
    while high - low > 1:
        middle = (low + high) // 2
        if step_s(middle) <= limit_s:
            low = middle
        else:
            high = middle
    return low
