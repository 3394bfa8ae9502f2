"""Perplexity of a text under an engine, in windows of tokens; it knows no variant, no file and no configuration.

The text is one row of tokens, as for WikiText-2. A window holds `context` of them and begins `stride` after the one
before; of its tokens those count that no earlier window counted. With stride = context the windows are disjoint, and
each token is predicted from those before it in its window: the usual figure for GPTQ, AWQ and LLM.int8. A shorter
stride gives every token at least context - stride tokens to be predicted from, a lower figure at more work.
The first token of the text has nothing before it; nor has, with disjoint windows, the first of each.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from cluster.request import Engine, GenerationRequest, SamplingParams, TokenDelta

WINDOWS_AT_ONCE = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """Tokens begin .. end of the text, of which the last `num_scored` count."""

    begin: int
    end: int
    num_scored: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Perplexity:
    """exp(-mean log probability)."""

    log_likelihood: float
    num_tokens: int

    @property
    def value(self) -> float:
        return math.exp(-self.log_likelihood / self.num_tokens)


def windows(num_tokens: int, context: int, stride: int) -> Iterator[Window]:
    counted = 1  # the text's first token has nothing to be predicted from
    for begin in range(0, num_tokens, stride):
        end = min(begin + context, num_tokens)
        num_scored = min(end - counted, end - begin - 1)
        if num_scored > 0:
            yield Window(begin=begin, end=end, num_scored=num_scored)
        counted = end
        if end == num_tokens:
            return


def measure(engine: Engine, token_ids: list[int], pieces: Iterable[Window]) -> Iterator[tuple[Window, float]]:
    """Each window with the log likelihood of its counted tokens, as they are done."""
    running: dict[str, Window] = {}
    waiting = iter(pieces)
    while True:
        while len(running) < WINDOWS_AT_ONCE and (window := next(waiting, None)):
            request = _request(window, token_ids)
            verdict = engine.add(request)
            if not verdict.admitted:
                raise RuntimeError(f"the engine refuses a window of {window.end - window.begin}: {verdict.reason}")
            running[request.request_id] = window
        if not running:
            return
        for delta in engine.step():
            if delta.finish_reason is not None:
                window = running.pop(delta.request_id)
                yield window, _log_likelihood(window, delta)


def total(scores: Iterable[tuple[Window, float]]) -> Perplexity:
    scored = list(scores)
    return Perplexity(
        log_likelihood=math.fsum(log_likelihood for _, log_likelihood in scored),
        num_tokens=sum(window.num_scored for window, _ in scored),
    )


def _request(window: Window, token_ids: list[int]) -> GenerationRequest:
    """The log probabilities of a prompt; the one token that is generated is not looked at."""
    return GenerationRequest(
        request_id=str(window.begin),
        prompt_token_ids=token_ids[window.begin : window.end],
        sampling=SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0),
    )


def _log_likelihood(window: Window, delta: TokenDelta) -> float:
    if delta.prompt_logprobs is None:
        raise RuntimeError(f"no log probabilities for tokens {window.begin} .. {window.end}: {delta.error}")
    counted = delta.prompt_logprobs[-window.num_scored :]
    return math.fsum(entry.logprob for entry in counted if entry is not None)
