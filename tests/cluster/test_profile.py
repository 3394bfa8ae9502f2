"""Profiles on disk: what is written is read back, and what does not fit is not used."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from cluster.profile import Profile, ProfileKey, ProfilePoint, StepShape, newest_profile

KEY = ProfileKey(
    model="embedded:smollm2-135m", variant="int8", accelerator="cpu-2", threads=1, versions={"torch": "2.13.0"}
)
PROFILE = Profile(
    key=KEY,
    points=(ProfilePoint(shape=StepShape(decode_sequences=2, kv_tokens=128, prefill_tokens=7), step_s=0.0125),),
    measured_at="2026-11-22T10:00:00",
)


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "profiles" / KEY.file_name()
    PROFILE.save(path)
    assert Profile.load(path, KEY) == PROFILE
    assert [file.name for file in path.parent.iterdir()] == [KEY.file_name()]


@pytest.mark.parametrize(
    "other", [replace(KEY, versions={"torch": "2.12.0"}), replace(KEY, threads=2), replace(KEY, share=0.5)]
)
def test_another_key_is_another_file_and_no_match(tmp_path: Path, other: ProfileKey) -> None:
    path = tmp_path / "profile.json"
    PROFILE.save(path)
    assert other.file_name() != KEY.file_name()
    assert Profile.load(path, other) is None


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 0}', '{"format": 1, "key": {}}'])
def test_a_broken_file_is_measured_anew(tmp_path: Path, text: str) -> None:
    path = tmp_path / "profile.json"
    path.write_text(text)
    assert Profile.load(path, KEY) is None
    assert newest_profile(tmp_path, [KEY.model], "int8", "cpu-2", 1) is None


def test_a_file_name_holds_no_slash() -> None:
    assert "/" not in replace(KEY, model="owner/name").file_name()


def test_the_newest_of_a_model_is_found_whatever_its_versions(tmp_path: Path) -> None:
    newer = replace(PROFILE, key=replace(KEY, versions={"torch": "2.14"}), measured_at="2026-12-01T00:00:00")
    for profile in (newer, PROFILE, replace(PROFILE, key=replace(KEY, threads=2), measured_at="2027-01-01")):
        profile.save(tmp_path / profile.key.file_name())
    assert newest_profile(tmp_path, [KEY.model], "int8", "cpu-2", 1) == newer
    assert newest_profile(tmp_path, ["another"], "int8", "cpu-2", 1) is None
    assert newest_profile(tmp_path / "none", [KEY.model], "int8", "cpu-2", 1) is None
