"""Greedy answers to a set of prompts, and how far two models' agree; it knows no variant and no text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile

from cluster.request import Engine, GenerationRequest, SamplingParams

ANSWER_TOKENS = 64
"""Of an answer at most: later tokens follow from the first that differs and say nothing new."""

ANSWERS_AT_ONCE = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    exact: float
    """Share of prompts whose answers are equal to the last token."""
    leading: float
    """Mean share of an answer's tokens before the first that differs (of the longer answer, where one ends first)."""


def greedy_answers(engine: Engine, prompts: Sequence[Sequence[int]]) -> Iterator[tuple[int, list[int]]]:
    """The number of a prompt and the tokens of its answer, as they are done."""
    waiting = iter(enumerate(prompts))
    answers: dict[str, list[int]] = {}
    while True:
        while len(answers) < ANSWERS_AT_ONCE and (prompt := next(waiting, None)):
            _add(engine, *prompt)
            answers[str(prompt[0])] = []
        if not answers:
            return
        for delta in engine.step():
            if delta.error is not None:
                raise ArithmeticError(f"prompt {int(delta.request_id) + 1}: {delta.error}")
            answers[delta.request_id] += delta.token_ids
            if delta.finish_reason is not None:
                yield int(delta.request_id), answers.pop(delta.request_id)


def _add(engine: Engine, number: int, token_ids: Sequence[int]) -> None:
    sampling = SamplingParams(max_tokens=ANSWER_TOKENS, temperature=0.0)
    request = GenerationRequest(request_id=str(number), prompt_token_ids=list(token_ids), sampling=sampling)
    verdict = engine.add(request)
    if not verdict.admitted:
        raise RuntimeError(f"the engine refuses prompt {number + 1} of {len(token_ids)} tokens: {verdict.reason}")


def agreement(reference: Sequence[Sequence[int]], answers: Sequence[Sequence[int]]) -> Agreement:
    """Of answers to the same prompts in the same order; one at least."""
    pairs = list(zip(reference, answers, strict=True))
    return Agreement(
        exact=sum(list(one) == list(other) for one, other in pairs) / len(pairs),
        leading=sum(_leading(one, other) for one, other in pairs) / len(pairs),
    )


def _leading(one: Sequence[int], other: Sequence[int]) -> float:
    equal = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))
    longer = max(len(one), len(other))
    return equal / longer if longer else 1.0
