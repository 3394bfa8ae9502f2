"""Perplexity of the real engine: that of transformers on the same weights and windows, and the table of qualities."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from batch_jobs.evaluate import EvaluateJob, read_tokens, reference_variant, run_evaluate
from batch_jobs.perplexity import Perplexity, windows
from cluster.config import FleetConfig
from cluster.errors import UserError
from engine.text import TextCodec

CONTEXT = 96


def transformers_perplexity(checkpoint: Path, token_ids: list[int], stride: int) -> float:
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    log_likelihood, num_tokens = 0.0, 0
    with torch.inference_mode():
        for window in windows(len(token_ids), CONTEXT, stride):
            ids = torch.tensor([token_ids[window.begin : window.end]])
            logits = model(ids).logits[0, :-1].float()
            scored = torch.log_softmax(logits, -1).gather(1, ids[0, 1:, None])[-window.num_scored :]
            log_likelihood += float(scored.double().sum())
            num_tokens += window.num_scored
    return Perplexity(log_likelihood=log_likelihood, num_tokens=num_tokens).value


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text((Path(__file__).parents[2] / "README.md").read_text() * 3)
    return path


@pytest.mark.parametrize("stride", [None, 40])
def test_it_is_transformers_perplexity_on_the_same_windows(checkpoint: Path, text: Path, stride: int | None) -> None:
    job = EvaluateJob(
        config=FleetConfig.built_in(), variants=("bf16",), text=text, context=CONTEXT, stride=stride, max_tokens=250
    )
    (score,) = run_evaluate(job)
    token_ids = read_tokens(text, TextCodec(checkpoint), 250)
    expected = transformers_perplexity(checkpoint, token_ids, stride or CONTEXT)
    assert score.perplexity == pytest.approx(expected, rel=0.005)
    assert score.quality == 1.0
    assert score.num_tokens == sum(window.num_scored for window in windows(250, CONTEXT, stride or CONTEXT))


def test_quality_is_the_references_perplexity_over_its_own(text: Path) -> None:
    job = EvaluateJob(config=FleetConfig.built_in(), variants=("nf4", "bf16"), text=text, context=64, max_tokens=128)
    reference, nf4 = run_evaluate(job)
    assert [reference.variant, nf4.variant] == ["bf16", "nf4"]
    assert nf4.quality == reference.perplexity / nf4.perplexity
    assert 0.3 < nf4.quality < 1.0


def test_the_reference_is_unquantised() -> None:
    config = FleetConfig.of(
        {"model": {"source": "x"}, "variants": {"b": {}, "a": {"dtype": "fp32"}, "q": {"method": "nf4"}}}
    )
    assert reference_variant(config).name == "b"
    with pytest.raises(UserError, match="nothing to compare with"):
        reference_variant(FleetConfig.of({"model": {"source": "x"}, "variants": {"q": {"method": "nf4"}}}))


def test_mistakes_are_one_line(checkpoint: Path, tmp_path: Path) -> None:
    job = EvaluateJob(config=FleetConfig.built_in(), variants=("bf16",), text=tmp_path / "none.txt")
    with pytest.raises(UserError, match=r"--text .*none.txt: cannot be read"):
        run_evaluate(job)
    (tmp_path / "short.txt").write_text("a")
    with pytest.raises(UserError, match="has 1 tokens"):
        run_evaluate(replace(job, text=tmp_path / "short.txt"))
    for wrong, error in (
        ({"stride": 600}, "--stride 600"),
        ({"context": 1}, "--context 1"),
        ({"max_tokens": 1}, "max-tokens"),
    ):
        with pytest.raises(UserError, match=error):
            replace(job, **wrong)
