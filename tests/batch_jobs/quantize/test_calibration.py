"""Calibration windows: from a file or from Python's own prose, the same for the same seed, and refused in one line."""

from dataclasses import replace
from pathlib import Path

import pytest

from batch_jobs.quantize.calibration import CalibrationSettings, read_calibration
from batch_jobs.quantize.python_corpus import python_corpus
from batch_jobs.text_overlap import paragraph_hashes
from cluster.errors import UserError
from engine.text import TextCodec


def test_windows_are_of_the_text_and_the_seed_decides_which(embedded: Path, text_file: Path) -> None:
    settings = CalibrationSettings(file=text_file, num_samples=5, seq_len=32, seed=1)
    found = read_calibration(settings, embedded)
    token_ids = TextCodec(embedded).encode(text_file.read_text())
    joined = " ".join(map(str, token_ids))
    assert len(found.windows) == 5
    assert all(len(window) == 32 and " ".join(map(str, window)) in joined for window in found.windows)
    assert found.name == text_file.name
    assert set(found.paragraphs) == paragraph_hashes(text_file.read_text())
    assert read_calibration(settings, embedded) == found
    other = read_calibration(replace(settings, seed=2), embedded)
    assert other.windows != found.windows
    assert other.windows_sha256 != found.windows_sha256
    assert other.sha256 == found.sha256


def test_pythons_prose_is_enough_and_is_prose() -> None:
    paragraphs = python_corpus().strip().split("\n\n")
    assert len(set(paragraphs)) == len(paragraphs) > 2000
    assert sum(map(len, paragraphs)) > 600_000  # 256 samples of 128 tokens are 150,000 characters
    assert not any(">>>" in paragraph for paragraph in paragraphs)


def test_mistakes_are_one_line(embedded: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.txt: cannot be read"):
        read_calibration(CalibrationSettings(file=tmp_path / "none.txt"), embedded)
    (tmp_path / "short.txt").write_text("a few words")
    with pytest.raises(UserError, match=r"has 3 tokens, fewer than one sample of 128"):
        read_calibration(CalibrationSettings(file=tmp_path / "short.txt"), embedded)
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9 " * 100)
    with pytest.raises(UserError, match="is not UTF-8"):
        read_calibration(CalibrationSettings(file=tmp_path / "latin.txt"), embedded)
    with pytest.raises(UserError, match="--num-samples 0"):
        CalibrationSettings(num_samples=0)
