"""Perplexity of a text in windows of tokens, as the papers count it; it knows no variant, no file and no model.

The text is one row of tokens, as for WikiText-2. A window holds `context` of them and begins `stride` after the one
before; of its tokens those count that no earlier window counted. With stride = context the windows are disjoint, and
each token is predicted from those before it in its window: the usual figure for GPTQ, AWQ and LLM.int8. A shorter
stride gives every token at least context - stride tokens to be predicted from, a lower figure at more work.
The first token of the text has nothing before it; nor has, with disjoint windows, the first of each.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass


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
