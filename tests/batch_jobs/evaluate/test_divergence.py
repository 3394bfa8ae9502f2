"""Perplexity, KL and top-1 of the real engine against transformers in float64 on the same windows."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from batch_jobs.evaluate.divergence import Divergence, compare, walk
from batch_jobs.perplexity import windows
from cluster.engine_spec import EngineSpec
from cluster.variants import Variant
from engine.scoring import WindowScorer

CONTEXT = 64
TOKENS = [(7 * i * i + 11 * i) % 3000 for i in range(200)]


def spec_of(folder: Path, variant: Variant) -> EngineSpec:
    return EngineSpec(
        replica_id="test",
        checkpoint=str(folder),
        variant=variant,
        kv_capacity_tokens=CONTEXT,
        kv_dtype="fp32" if variant.dtype == "fp32" else "bf16",
        max_context=CONTEXT,
        token_budget=24,
    )


FP32 = Variant(name="fp32", dtype="fp32")


@pytest.fixture(scope="module")
def noisy(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model with other weights, as if badly quantised."""
    folder = tmp_path_factory.mktemp("noisy") / "noisy"
    folder.mkdir()
    (folder / "config.json").write_text((tiny / "config.json").read_text())
    generator = torch.Generator().manual_seed(1)
    weights = load_file(tiny / "model.safetensors")
    noise = {name: 0.02 * torch.randn(weight.shape, generator=generator) for name, weight in weights.items()}
    save_file(
        {name: weight + noise[name].to(weight.dtype) for name, weight in weights.items()}, folder / "model.safetensors"
    )
    return folder


@pytest.fixture(scope="module")
def in_float64(tiny: Path, noisy: Path) -> Callable[[Path, list[int]], torch.Tensor]:
    models = {
        folder: transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()
        for folder in (tiny, noisy)
    }

    def log_probabilities(folder: Path, tokens: list[int]) -> torch.Tensor:
        with torch.inference_mode():
            return torch.log_softmax(models[folder](torch.tensor([tokens])).logits[0, :-1], -1)

    return log_probabilities


@pytest.mark.parametrize("stride", [CONTEXT, 40])
def test_it_is_what_transformers_gives_in_float64(
    tiny: Path, noisy: Path, in_float64: Callable[[Path, list[int]], torch.Tensor], stride: int
) -> None:
    pieces = list(windows(len(TOKENS), CONTEXT, stride))
    scorers = WindowScorer(spec_of(noisy, FP32)), WindowScorer(spec_of(tiny, FP32))
    found = list(walk(*scorers, TOKENS, pieces))
    assert sum(window.num_tokens for window in found) == sum(window.num_scored for window in pieces)
    for window, score in zip(pieces, found, strict=True):
        tokens, scored = TOKENS[window.begin : window.end], slice(-window.num_scored, None)
        own = in_float64(noisy, tokens)[scored]
        reference = in_float64(tiny, tokens)[scored]
        targets = torch.tensor(tokens[scored])
        assert score.log_likelihood == pytest.approx(float(own.gather(1, targets[:, None]).sum()), rel=1e-6)
        assert score.kl == pytest.approx(float((reference.exp() * (reference - own)).sum()), rel=1e-4)
        assert score.agreements == int((own.argmax(1) == reference.argmax(1)).sum())
    total = sum(found, Divergence())
    assert 0 < total.agreements < total.num_tokens
    assert total.perplexity == pytest.approx(math.exp(-total.log_likelihood / total.num_tokens))


@pytest.mark.parametrize("variant", [Variant(name="bf16"), Variant(name="nf4", method="nf4")])
def test_a_model_does_not_diverge_from_itself(tiny: Path, variant: Variant) -> None:
    pieces = list(windows(len(TOKENS), CONTEXT, 50))
    twice = WindowScorer(spec_of(tiny, variant)), WindowScorer(spec_of(tiny, variant))
    beside_itself = sum(walk(*twice, TOKENS, pieces), Divergence())
    assert beside_itself.kl == 0.0
    assert beside_itself.agreements == beside_itself.num_tokens
    assert beside_itself == sum(walk(twice[0], None, TOKENS, pieces), Divergence())


def test_chunk_boundaries_change_nothing(tiny: Path) -> None:
    pieces = list(windows(len(TOKENS), CONTEXT, CONTEXT))
    found = []
    for budget in (24, 64):
        nf4, bf16 = (
            WindowScorer(replace(spec_of(tiny, variant), token_budget=budget))
            for variant in (Variant(name="nf4", method="nf4"), Variant(name="bf16"))
        )
        found.append(sum(walk(nf4, bf16, TOKENS, pieces), Divergence()))
    assert found[0].agreements == found[1].agreements
    assert found[0].kl == pytest.approx(found[1].kl, rel=1e-12)
    assert found[0].log_likelihood == pytest.approx(found[1].log_likelihood, rel=1e-12)
    assert found[0].kl > 0


def test_rows_are_within_1e_7_of_float64() -> None:
    generator = torch.Generator().manual_seed(0)
    for spread in (0.01, 1.0):
        reference = 6 * torch.randn(70, 4096, generator=generator)
        logits = reference + spread * torch.randn(70, 4096, generator=generator)
        p, q = (torch.log_softmax(values.double(), 1) for values in (reference, logits))
        expected = float((p.exp() * (p - q)).sum())
        assert compare(logits, reference, [1] * 70).kl == pytest.approx(expected, abs=70e-7)


def test_weights_that_are_not_finite_are_told(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((tiny / "config.json").read_text())
    weights = load_file(tiny / "model.safetensors")
    weights["model.norm.weight"][:] = float("nan")
    save_file(weights, tmp_path / "model.safetensors")
    broken = WindowScorer(spec_of(tmp_path, Variant(name="bf16")))
    with pytest.raises(ArithmeticError, match="not finite"):
        list(walk(broken, None, TOKENS, windows(100, CONTEXT, CONTEXT)))
