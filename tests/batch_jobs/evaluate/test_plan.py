"""What will be measured with how much; every mistake of text, windows, prompts and calibration is one line."""

from __future__ import annotations

import json
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest

from batch_jobs.evaluate.evaluation_text import read_calibration, read_text
from batch_jobs.evaluate.plan import EvaluateJob, plan_evaluation
from batch_jobs.evaluate.prompt_set import read_prompts
from batch_jobs.prompts import PromptEncoder
from batch_jobs.text_overlap import paragraph_hashes
from cluster.config import FleetConfig
from cluster.errors import UserError
from engine.text import TextCodec


@pytest.fixture(scope="module")
def codec(tiny: Path) -> TextCodec:
    return TextCodec(tiny)


@pytest.fixture(scope="module")
def encoder(tiny: Path) -> PromptEncoder:
    return PromptEncoder(checkpoint=str(tiny), max_prompt_tokens=512)


@pytest.fixture
def job(config: FleetConfig, text: Path) -> EvaluateJob:
    return EvaluateJob(config=config, variants=("nf4",), text=text, context=64, max_tokens=200)


def test_a_variant_is_measured_beside_the_reference(job: EvaluateJob) -> None:
    plan = plan_evaluation(replace(job, stride=40))
    tasks = plan.quality_tasks(at_once=1)
    assert list(tasks) == ["bf16", "nf4"]
    bf16, nf4 = tasks.values()
    assert (bf16.reference, nf4.reference) == (None, bf16.spec)
    assert nf4.spec == replace(bf16.spec, variant=nf4.spec.variant, replica_id=nf4.spec.replica_id)
    assert sum(window.num_scored for window in nf4.windows) == 199
    assert len(nf4.prompts) == 16
    assert nf4.spec.max_context >= max(map(len, nf4.prompts)) + 64
    assert nf4.num_steps == len(nf4.windows) + 16
    assert plan.at_once() >= 1


def test_the_text_is_named_and_hashed_whole(text: Path, codec: TextCodec) -> None:
    found = read_text(text, codec, 200)
    assert found.sha256 == sha256(text.read_bytes()).hexdigest()
    assert found.name == "text.txt"
    assert found.token_ids == codec.encode(text.read_text())[:200]
    assert found.characters == len(codec.decode(found.token_ids))
    assert len(read_text(text, codec, None).token_ids) > 1000


def test_prompts_are_chats_of_the_model(encoder: PromptEncoder, codec: TextCodec, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "Hello"}\n{"messages": [{"role": "user", "content": "Hello"}]}\n')
    found = read_prompts(prompts, encoder)
    expected = codec.encode_chat([{"role": "user", "content": "Hello"}])
    assert found.prompts == [expected, expected]
    assert (found.name, found.sha256) == ("prompts.jsonl", sha256(prompts.read_bytes()).hexdigest())


def test_a_calibration_text_must_not_overlap(job: EvaluateJob, tiny: Path, tmp_path: Path) -> None:
    folder = copytree(tiny, tmp_path / "made")

    def calibrated_on(text: str) -> EvaluateJob:
        note = {"name": "corpus.txt", "sha256": "0" * 64, "paragraphs": sorted(paragraph_hashes(text))}
        (folder / "quantfleet.json").write_text(json.dumps({"calibration": note}))
        return replace(job, variants=(str(folder),))

    with pytest.raises(
        UserError, match=r"calibrated on 1 of its paragraphs \(corpus.txt; the first begins 'quantfleet"
    ):
        plan_evaluation(calibrated_on(job.text.read_text()[:700]))
    plan = plan_evaluation(
        calibrated_on("Another text, which is long enough to be a paragraph that can be told apart." * 2)
    )
    assert plan.calibrations["made"].name == "corpus.txt"


@pytest.mark.parametrize("note", [{"calibration": {"name": "a"}}, {"calibration": {"paragraphs": 5}}, [], "x"])
def test_a_note_that_says_nothing_readable_is_told(tmp_path: Path, note: Any) -> None:
    assert read_calibration(tmp_path) is None
    (tmp_path / "quantfleet.json").write_text('{"method": "nf4", "calibration": null}')
    assert read_calibration(tmp_path) is None
    (tmp_path / "quantfleet.json").write_text(json.dumps(note))
    with pytest.raises(UserError, match=r"quantfleet.json: says nothing readable of the calibration"):
        read_calibration(tmp_path)


def test_mistakes_of_text_and_prompts_are_one_line(codec: TextCodec, encoder: PromptEncoder, tmp_path: Path) -> None:
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9 " * 50)
    (tmp_path / "bad.jsonl").write_text('{"prompt": "a"}\n{"prompt": ""}\n')
    (tmp_path / "none.jsonl").write_text("\n")
    for name, error in (
        ("absent.txt", r"--text .*absent.txt: cannot be read: No such file"),
        ("", r"--text .*: cannot be read: Is a directory"),
        ("latin.txt", "not UTF-8: byte 0xe9"),
    ):
        with pytest.raises(UserError, match=error):
            read_text(tmp_path / name, codec, None)
    for name, error in (
        ("absent.jsonl", r"--prompts .*absent.jsonl: no such file"),
        ("bad.jsonl", r"--prompts .*: row bad.jsonl:2: column 'prompt' is empty"),
        ("none.jsonl", r"--prompts .*: no rows to read"),
    ):
        with pytest.raises(UserError, match=error):
            read_prompts(tmp_path / name, encoder)


def test_mistakes_of_windows_are_one_line(job: EvaluateJob, tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("Too short.")
    for wrong, error in (
        ({"text": tmp_path / "short.txt"}, "tokens, less than one window of --context 64"),
        ({"context": 1025, "max_tokens": None}, "--context 1025: tiny has positions for 1024 tokens"),
    ):
        with pytest.raises(UserError, match=error):
            plan_evaluation(replace(job, **wrong))
    for wrong, error in (
        ({"stride": 600}, "--stride 600"),
        ({"stride": 0}, "--stride 0"),
        ({"context": 1}, "--context 1: a window has 2 tokens"),
        ({"max_tokens": 63}, "--max-tokens 63: less than one window"),
    ):
        with pytest.raises(UserError, match=error):
            replace(job, **wrong)
