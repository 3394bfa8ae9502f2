"""Mistakes of the user's: one line, exit code 2, before anything is started."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MODEL = "model: {name: m, source: embedded:smollm2-135m}\n"


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("model: {source: ./nowhere}\nhttp: {port: 0}\n", "nowhere"),
        (MODEL + "http: {prot: 8000}\n", "prot"),
        (MODEL + "engine: {block_size: 7}\n", "block_size"),
        (MODEL + "http: {host: 0.0.0.0}\n", "keys"),
        (MODEL + "variants: [1\n", "fleet.yaml"),
        (None, "nothing.yaml"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(tmp_path: Path, text: str | None, word: str) -> None:
    path = tmp_path / ("fleet.yaml" if text else "nothing.yaml")
    if text:
        path.write_text(text)
    done = subprocess.run(
        [sys.executable, "-m", "quantfleet", "serve", str(path)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    lines = done.stderr.strip().splitlines()
    assert done.returncode == 2, done.stderr
    assert len(lines) == 1, done.stderr
    assert word in lines[0]
