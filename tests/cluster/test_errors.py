"""What an error about an unknown word proposes."""

from __future__ import annotations

import pytest

from cluster.errors import UserError, did_you_mean


@pytest.mark.parametrize(
    ("word", "words"),
    [
        ("max_contxt", "did you mean max_context?"),
        ("H100", "did you mean H100-80G?"),
        ("zebra", "known: H100-80G, H200, max_context"),
        ("", "known: H100-80G, H200, max_context"),
    ],
)
def test_the_nearest_known_word_or_all(word: str, words: str) -> None:
    assert did_you_mean(word, ["max_context", "H200", "H100-80G"]) == words


def test_a_mistake_of_the_users_is_a_value_error() -> None:
    assert issubclass(UserError, ValueError)
