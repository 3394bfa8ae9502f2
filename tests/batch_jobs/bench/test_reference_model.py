"""The experiments' model and parts, on a tiny seeded Llama: exchanged weights and products are what is measured."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import transformers
from torch import Tensor
from torch.nn.functional import cross_entropy

from batch_jobs.bench import four_bit_types, int8_threshold, salient_channels
from batch_jobs.bench.reference_model import ReferenceModel
from batch_jobs.quantize.grid import GridSettings
from kernels.int8_matmul import dequantize_int8, quantize_int8

CONTEXT = 32


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        vocab_size=250,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    )
    model = transformers.LlamaForCausalLM(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "proj" in name:
                parameter.mul_(8)  # so that the blocks, and their rounding, weigh beside the embedding
    path = tmp_path_factory.mktemp("model")
    model.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def model(folder: Path) -> ReferenceModel:
    return ReferenceModel(folder, num_threads=1)


@pytest.fixture(scope="module")
def token_ids() -> list[int]:
    return torch.randint(250, (100,), generator=torch.Generator().manual_seed(1)).tolist()


def nothing() -> None:
    pass


def test_perplexity_is_that_of_transformers_own_loss(folder: Path, model: ReferenceModel, token_ids: list[int]) -> None:
    plain = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    nats, count = 0.0, 0
    for begin in range(0, len(token_ids), CONTEXT):
        window = torch.tensor([token_ids[begin : begin + CONTEXT]])
        with torch.inference_mode():
            logits = plain(window).logits[0, :-1]
        nats += float(cross_entropy(logits, window[0, 1:], reduction="sum"))
        count += window.shape[1] - 1
    assert model.perplexity(token_ids, CONTEXT) == pytest.approx(math.exp(nats / count), rel=1e-5)


def test_exchanged_weights_count_inside_only(model: ReferenceModel, token_ids: list[int]) -> None:
    before = model.perplexity(token_ids, CONTEXT)
    with model.with_weights({name: torch.zeros_like(weight) for name, weight in model.weights().items()}):
        inside = model.perplexity(token_ids, CONTEXT)
    assert abs(inside - before) > 0.1
    assert model.perplexity(token_ids, CONTEXT) == before


def test_exchanged_products_see_every_linear(model: ReferenceModel, token_ids: list[int]) -> None:
    seen: set[str] = set()

    def product(name: str, x: Tensor) -> Tensor:
        seen.add(name)
        return x @ model.linears[name].weight.T

    before = model.perplexity(token_ids, CONTEXT)
    with model.with_products(product):
        assert model.perplexity(token_ids, CONTEXT) == pytest.approx(before, rel=1e-5)
    assert seen == set(model.weights())
    assert len(seen) == 14


def test_magnitudes_are_means_over_all_samples(model: ReferenceModel, token_ids: list[int]) -> None:
    halves = model.input_magnitudes([token_ids[:40]]), model.input_magnitudes([token_ids[40:60]])
    both = model.input_magnitudes([token_ids[:40], token_ids[40:60]])
    for name, mean in both.items():
        torch.testing.assert_close(mean, (40 * halves[0][name] + 20 * halves[1][name]) / 60)


def test_without_a_threshold_nothing_is_kept(model: ReferenceModel, token_ids: list[int]) -> None:
    (score,) = int8_threshold.sweep(model, token_ids, CONTEXT, [math.inf], nothing)
    assert (score.values_kept, score.columns_kept) == (0.0, 0.0)
    assert score.perplexity_by_row == score.perplexity_by_column


def test_a_threshold_of_nothing_leaves_int8_weights_alone(model: ReferenceModel, token_ids: list[int]) -> None:
    """Every activation kept: by row the weights are still int8, by column they are not."""
    (score,) = int8_threshold.sweep(model, token_ids, CONTEXT, [1e-9], nothing)
    weights = {name: dequantize_int8(quantize_int8(weight)) for name, weight in model.weights().items()}
    with model.with_weights(weights):
        assert score.perplexity_by_row == pytest.approx(model.perplexity(token_ids, CONTEXT), rel=1e-4)
    assert score.perplexity_by_column == pytest.approx(model.perplexity(token_ids, CONTEXT), rel=1e-4)
    assert score.columns_kept == 1.0


def test_a_lower_threshold_keeps_more(model: ReferenceModel, token_ids: list[int]) -> None:
    scores = int8_threshold.sweep(model, token_ids, CONTEXT, [0.5, 1.0, 2.0], nothing)
    kept = [score.values_kept for score in scores]
    assert kept == sorted(kept, reverse=True)
    assert all(score.columns_kept > score.values_kept for score in scores)


def test_types_are_told_apart_as_their_papers_say() -> None:
    """On normal weights, which NF4 was made for; by the error of the weights themselves."""
    weight = torch.randn(64, 4096, generator=torch.Generator().manual_seed(0))
    error = {name: float((cast(weight) - weight).square().mean()) for name, cast in four_bit_types.TYPES.items()}
    assert error["nf4"] < error["fp4"] < 1.5 * error["int4 (absmax)"]
    assert error["nf4"] < error["int4 (absmax)"]
    assert error["nf4, double quantisation"] == pytest.approx(error["nf4"], rel=0.01)


def test_every_treatment_of_the_salient_channels_is_scored(model: ReferenceModel, token_ids: list[int]) -> None:
    grid = GridSettings(bits=3, group_size=32)
    scores = salient_channels.compare(model, token_ids, [token_ids], CONTEXT, grid, nothing)
    assert len(scores) == salient_channels.num_treatments()
    assert scores["1 % by activation times 1"] == pytest.approx(scores["rounded to nearest"], rel=1e-5)
    assert len(set(scores.values())) >= len(scores) - 1
