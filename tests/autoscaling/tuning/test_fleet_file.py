"""Tuned settings in a fleet.yaml, however its section is written: comments stay, and nothing else changes."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from autoscaling.tuning.fleet_file import EVIDENCE, fleet_text, tuned_text
from autoscaling.tuning.search_space import settings_of, with_settings
from cluster.config import BUILT_IN, AutoscalingSection, FleetConfig
from cluster.errors import UserError

TUNED = {
    "headroom": 0.331,
    "hysteresis": 0.05,
    "swap_gain": 0.2,
    "interval_s": 5.0,
    "level_s": 12.3,
    "trend_s": 1010.0,
    "hold_s": 47.0,
    "idle_s": 0.00003,
}
HEAD = "# My fleet.\nmodel: {source: embedded:smollm2-135m}  # small\n"
SECTIONS = {
    "none": "",
    "none, no line end": "http: {port: 9000}  # the port",
    "empty": "autoscaling:\n#  headroom: 0.2\nhttp: {port: 9000}\n",
    "empty with a comment": "autoscaling: # later\nhttp: {port: 9000}\n",
    "null": "autoscaling: null # later\n",
    "braces": "autoscaling: {}\n",
    "flow": "autoscaling: {headroom: 0.25, budget: {gpus: 64}} # whole GPUs\n",
    "flow over lines": "autoscaling: {\n  headroom: 0.25, # of all\n  hold_s: 90,\n}\n# the end\n",
    "block": (
        "autoscaling:\n  # much\n  headroom: 0.25   # of all\n  hold_s: 90\n\n"
        "  replicas:\n    bf16: {min: 0, max: 3} # few\n    int8:\n      min: 1 # one\n      max: 2 # two\n"
        "# after\nhttp: {port: 9000}\n"
    ),
    "block, last, no line end": "autoscaling:\n    budget: {gpus: 3}\n    log: null # none",
    "lines of Windows": "autoscaling:\r\n  headroom: 0.25 # of all\r\n  hold_s: 90\r\nhttp: {port: 9000}\r\n",
    "quoted": "'autoscaling':\n  \"headroom\": 0.25 # of all\n",
    "all keys": "autoscaling:\n"
    + "".join(f"  {key}: {value}\n" for key, value in settings_of(AutoscalingSection()).items()),
}


def loaded(text: str, folder: Path) -> FleetConfig:
    path = folder / "fleet.yaml"
    path.write_bytes(text.encode())
    return FleetConfig.load(path)


def comments(text: str) -> list[str]:
    return [line.partition("#")[2].strip() for line in text.splitlines() if "#" in line]


@pytest.mark.parametrize("section", SECTIONS.values(), ids=SECTIONS)
@pytest.mark.parametrize("keys", [tuple(TUNED), ("headroom", "level_s")], ids=["all", "two"])
def test_only_these_settings_change(section: str, keys: tuple[str, ...], tmp_path: Path) -> None:
    text = HEAD + section
    settings = {key: TUNED[key] for key in keys}
    old = loaded(text, tmp_path)
    edited = tuned_text(text, {**settings_of(old.autoscaling), **settings})
    new = loaded(edited, tmp_path)
    assert settings_of(new.autoscaling) == {**settings_of(old.autoscaling), **settings}
    expected = old.model_copy(update={"autoscaling": with_settings(old.autoscaling, settings)})
    assert new.model_dump() == expected.model_dump()
    assert comments(edited) == comments(text)
    assert edited.startswith(HEAD)
    if "\r\n" in section:
        added = edited.removeprefix(HEAD)
        assert added.count("\n") == added.count("\r\n")


def test_the_built_in_and_a_fleet_in_braces(tmp_path: Path) -> None:
    for text in (BUILT_IN.read_text(), "{model: {source: embedded:smollm2-135m}, default_class: exact}\n"):
        old = loaded(text, tmp_path)
        new = loaded(tuned_text(text, TUNED), tmp_path)
        assert settings_of(new.autoscaling) == TUNED
        assert new.slo_classes == old.slo_classes
        assert new.autoscaling.replicas == old.autoscaling.replicas


def test_settings_as_they_are_change_nothing() -> None:
    text = HEAD + SECTIONS["block"]
    old = FleetConfig.of(yaml.safe_load(text))
    assert tuned_text(text, settings_of(old.autoscaling)) == text


def test_evidence_stands_at_the_end_and_is_replaced(tmp_path: Path) -> None:
    text = HEAD + SECTIONS["block"]
    once = tuned_text(text, TUNED, ["# seed: 0", "# attainment: 0.99"])
    assert once.endswith(f"{EVIDENCE}\n# seed: 0\n# attainment: 0.99\n")
    again = tuned_text(once, {**TUNED, "headroom": 0.1}, ["# seed: 1"])
    assert again.endswith(f"{EVIDENCE}\n# seed: 1\n")
    assert again.count(EVIDENCE) == 1
    assert "# seed: 0" not in again
    assert loaded(again, tmp_path).autoscaling.headroom == 0.1
    moved = f"{EVIDENCE}\n# seed: 0\n{text}"
    assert tuned_text(moved, TUNED).startswith(moved[: len(EVIDENCE) + 10]), "what a person moved stays"


@pytest.mark.parametrize(
    "section",
    ["autoscaling: {headroom: &room 0.25, hysteresis: *room}\n", "http: {port: 9000}\n...\n"],
    ids=["an anchor", "an end of the document"],
)
def test_what_cannot_be_edited_is_refused(section: str) -> None:
    with pytest.raises(UserError, match="cannot be edited with its comments kept") as caught:
        tuned_text(HEAD + section, TUNED)
    assert "\n" not in str(caught.value)


def test_the_text_is_that_of_the_file_that_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert fleet_text(None) == BUILT_IN.read_text()
    (tmp_path / "fleet.yaml").write_bytes(b"model: {source: x}\r\n")
    assert fleet_text(None) == "model: {source: x}\r\n"
    (tmp_path / "other.yaml").write_text("model: {source: y}\n")
    assert fleet_text(Path("other.yaml")) == "model: {source: y}\n"
