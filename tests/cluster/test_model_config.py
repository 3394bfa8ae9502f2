"""config.json without weights: embedded, in a folder, and refused in one line where it cannot be had."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cluster.errors import UserError
from cluster.model_config import model_config, shape_of


def test_the_embedded_model_needs_no_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUANTFLEET_CACHE", str(tmp_path))
    shape = shape_of("embedded:smollm2-135m")
    assert shape.params == 134_515_008
    assert shape.kv_bytes_per_token(2) == 23040
    assert not list(tmp_path.iterdir())


def test_a_folder_with_nothing_but_its_config(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(model_config("embedded:smollm2-135m") | {"num_hidden_layers": 2}))
    assert shape_of(str(tmp_path)).layers == 2


@pytest.mark.parametrize("source", ["embedded:llama", "no/such/folder", "./none", "a b"])
def test_unknown_sources_are_refused(source: str) -> None:
    with pytest.raises(UserError, match=r"model\.source"):
        shape_of(source)


def test_offline_and_not_cached_is_one_line() -> None:
    """In a process of its own: huggingface_hub reads HF_HUB_OFFLINE when it is imported."""
    import os
    import subprocess
    import sys

    code = "from cluster.model_config import shape_of\ntry:\n shape_of('owner/none')\nexcept ValueError as e: print(e)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.count("\n") == 1
    assert "HF_HUB_OFFLINE" in done.stdout
