"""Windows count every token once."""

import pytest

from batch_jobs.perplexity import Window, windows


def test_disjoint_windows_count_all_but_the_first_of_each() -> None:
    assert list(windows(10, 4, 4)) == [
        Window(begin=0, end=4, num_scored=3),
        Window(begin=4, end=8, num_scored=3),
        Window(begin=8, end=10, num_scored=1),
    ]
    assert sum(window.num_scored for window in windows(9, 4, 4)) == 6


@pytest.mark.parametrize(("num_tokens", "context", "stride"), [(10, 4, 1), (100, 16, 7), (5, 8, 3), (17, 16, 15)])
def test_overlapping_windows_count_every_token_but_the_first_once(num_tokens: int, context: int, stride: int) -> None:
    counted = [
        position
        for window in windows(num_tokens, context, stride)
        for position in range(window.end - window.num_scored, window.end)
    ]
    assert counted == list(range(1, num_tokens))
    assert all(window.end - window.begin <= context for window in windows(num_tokens, context, stride))
