"""OutputLengths: the prior, the mean and quantiles of what ended, and what is known of an answer under way."""

from __future__ import annotations

import random
from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.output_lengths import PRIOR_TOKENS, OutputLengths


def after(lengths: list[int], window: int = 512) -> OutputLengths:
    found = OutputLengths(window)
    for tokens in lengths:
        found.ended("standard", tokens)
    return found


def test_before_any_answer_there_is_a_prior() -> None:
    assert OutputLengths().expected("standard") == PRIOR_TOKENS
    assert OutputLengths().quantile("standard", 0.9) is None


def test_a_few_short_answers_do_not_displace_the_prior_at_once() -> None:
    assert after([4, 6, 5]).expected("standard") > 100
    assert after([5] * 400).expected("standard") == pytest.approx(10, abs=1)


def test_classes_are_told_apart() -> None:
    lengths = after([1000] * 500)
    assert lengths.expected("standard") > 900
    assert lengths.expected("interactive") == PRIOR_TOKENS


def test_quantiles() -> None:
    lengths = after(list(range(1, 101)))
    assert [lengths.quantile("standard", share) for share in (0.0, 0.5, 0.99, 1.0)] == [1, 50, 99, 100]


def test_what_was_generated_is_a_bound_from_below() -> None:
    rng = random.Random(0)
    seen = [round(rng.expovariate(1 / 200)) + 1 for _ in range(500)]
    lengths = after(seen)
    beyond = [tokens for tokens in seen if tokens > 300]
    assert lengths.expected("standard", generated=300) == pytest.approx(fmean(beyond), rel=0.1)
    assert lengths.expected("standard", generated=10**6) == 10**6 + 1


def test_old_answers_are_forgotten() -> None:
    lengths = after([1000] * 64 + [10] * 64, window=64)
    assert lengths.quantile("standard", 1.0) == 10
    assert lengths.expected("standard") == pytest.approx((64 * 10 + 8 * PRIOR_TOKENS) / 72, abs=1)


@given(
    seen=st.lists(st.integers(min_value=1, max_value=5000), max_size=40),
    generated=st.integers(min_value=0, max_value=6000),
)
def test_the_expectation_never_lies_below_what_is_there(seen: list[int], generated: int) -> None:
    assert after(seen, window=16).expected("standard", generated=generated) > generated
