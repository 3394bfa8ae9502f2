"""Cold starts on disk: the median of the last ones, and what a file that is none is worth."""

from __future__ import annotations

from pathlib import Path

import pytest

from serve_app.cold_starts import KEPT, PRIOR_S, add_cold_start, cold_start_s


def test_the_median_of_the_last_starts(tmp_path: Path) -> None:
    path = tmp_path / "cold_starts" / "int8.json"
    assert cold_start_s(path) == PRIOR_S
    for took_s in (100.0, 6.0, 8.0, 7.0):
        add_cold_start(path, took_s)
    assert cold_start_s(path) == 7.5
    for _ in range(KEPT):
        add_cold_start(path, 5.0)
    assert cold_start_s(path) == 5.0
    assert [file.name for file in path.parent.iterdir()] == ["int8.json"]


@pytest.mark.parametrize("content", ["", "{", "[1]", '{"cold_starts_s": ["soon"]}', "{}"])
def test_a_file_that_is_not_whole_counts_for_nothing(tmp_path: Path, content: str) -> None:
    path = tmp_path / "int8.json"
    path.write_text(content)
    assert cold_start_s(path) == PRIOR_S
    add_cold_start(path, 4.0)
    assert cold_start_s(path) == 4.0
