"""Folders that can be loaded, GGUF files converted once, whoever asks and however many at a time."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from cluster.errors import UserError
from engine.checkpoint import converted, ensure_checkpoint, file_lock


def test_a_complete_folder_is_itself(tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        (tmp_path / name).touch()
    assert ensure_checkpoint(str(tmp_path)) == tmp_path.resolve()


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ([], "no config.json"),
        (["config.json"], "no \\*.safetensors;"),
        (["config.json", "pytorch_model.bin"], "pytorch_model.bin, a pickle file, which is never read"),
        (["config.json", "model.safetensors"], "no tokenizer.json"),
    ],
)
def test_an_incomplete_folder_is_refused(files: list[str], said: str, tmp_path: Path) -> None:
    for name in files:
        (tmp_path / name).touch()
    with pytest.raises(UserError, match=said) as caught:
        ensure_checkpoint(str(tmp_path))
    assert "\n" not in str(caught.value)


def test_a_file_that_is_no_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "weights.bin").touch()
    with pytest.raises(UserError, match=r"neither a folder nor a \.gguf file"):
        ensure_checkpoint(str(tmp_path / "weights.bin"))


def test_the_embedded_model_is_converted_and_stays() -> None:
    folder = ensure_checkpoint("embedded:smollm2-135m")
    assert {path.name for path in folder.iterdir()} >= {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert converted("embedded:smollm2-135m") == folder
    started = time.monotonic()
    assert ensure_checkpoint("embedded:smollm2-135m") == folder
    assert time.monotonic() - started < 0.1


def test_concurrent_starters_convert_once(tiny_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUANTFLEET_CACHE", str(tmp_path / "cache"))
    code = f"from engine.checkpoint import ensure_checkpoint; print(ensure_checkpoint({str(tiny_gguf)!r}))"
    starters = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(3)]
    folders = {starter.communicate(timeout=60)[0].strip() for starter in starters}
    assert len(folders) == 1
    folder = Path(folders.pop())
    assert (folder / "model.safetensors").exists()
    left = {path.name for path in folder.parent.iterdir()}
    assert left == {folder.name, folder.name + ".lock"}, "no temporary folder is left"


def test_a_failed_conversion_leaves_nothing(tiny_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUANTFLEET_CACHE", str(tmp_path / "cache"))
    truncated = tmp_path / "cut.gguf"
    truncated.write_bytes(tiny_gguf.read_bytes()[:2000])
    with pytest.raises(UserError, match=r"cut\.gguf"):
        ensure_checkpoint(str(truncated))
    assert [path.suffix for path in (tmp_path / "cache" / "checkpoints").iterdir()] == [".lock"]


def test_a_lock_is_let_go(tmp_path: Path) -> None:
    for _ in range(2):
        with file_lock(tmp_path / "lock"):
            pass
