"""Greedy answers come whole and in any number; agreement counts tokens up to the first that differs."""

from __future__ import annotations

from pathlib import Path

import pytest

from batch_jobs.evaluate.answers import ANSWER_TOKENS, ANSWERS_AT_ONCE, agreement, greedy_answers
from cluster.engine_spec import EngineSpec
from cluster.variants import Variant
from engine.scoring import WindowScorer

PROMPTS = [[(31 * row + 7 * index) % 3000 + 3 for index in range(3 + row)] for row in range(ANSWERS_AT_ONCE + 3)]


def test_equal_answers_agree_in_all_tokens_and_others_up_to_the_first_that_differs() -> None:
    assert agreement([[1, 2, 3]], [[1, 2, 3]]).exact == 1.0
    found = agreement([[1, 2, 3, 4], [5, 6], [7], [8, 9]], [[1, 2, 9, 4], [5, 6], [1], [8, 9, 10, 11]])
    assert found.exact == 0.25
    assert found.leading == pytest.approx((0.5 + 1.0 + 0.0 + 0.5) / 4)
    assert agreement([[]], [[]]) == agreement([[1]], [[1]])


def answers(folder: Path, variant: Variant) -> list[list[int]]:
    spec = EngineSpec(
        replica_id="test",
        checkpoint=str(folder),
        variant=variant,
        kv_capacity_tokens=128 * ANSWERS_AT_ONCE,
        max_context=128,
        max_sequences=ANSWERS_AT_ONCE,
        prefix_caching=False,
    )
    found = dict(greedy_answers(WindowScorer(spec).engine(), PROMPTS))
    return [found[number] for number in range(len(PROMPTS))]


def test_a_model_agrees_with_itself_and_less_with_another(tiny: Path) -> None:
    bf16 = answers(tiny, Variant(name="bf16"))
    assert all(1 <= len(answer) <= ANSWER_TOKENS for answer in bf16)
    again = agreement(bf16, answers(tiny, Variant(name="bf16")))
    assert (again.exact, again.leading) == (1.0, 1.0)
    nf4 = agreement(bf16, answers(tiny, Variant(name="nf4", method="nf4")))
    assert nf4.exact <= nf4.leading < 1.0
