"""All logits of a window: transformers' own, whatever the chunks; and an engine over the same weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from cluster.request import GenerationRequest, SamplingParams
from cluster.variants import Variant
from engine.scoring import WindowScorer
from tests.engine.stepping import FP32, spec_of

TOKENS = [(7 * i * i + 3 * i) % 250 for i in range(150)]


def all_rows(scorer: WindowScorer, num_scored: int = len(TOKENS) - 1) -> torch.Tensor:
    return torch.cat(list(scorer.logits(TOKENS, num_scored)))


@pytest.fixture(scope="module")
def tiny(tiny_checkpoints: dict[str, Path]) -> Path:
    return tiny_checkpoints["llama"]


def test_they_are_transformers_logits(tiny: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32).eval()
    with torch.inference_mode():
        expected = model(torch.tensor([TOKENS])).logits[0, :-1]
    torch.testing.assert_close(all_rows(WindowScorer(spec_of(tiny))), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("variant", [FP32, Variant(name="int8", method="int8"), Variant(name="nf4", method="nf4")])
def test_chunk_boundaries_change_no_bit(tiny: Path, variant: Variant) -> None:
    whole = all_rows(WindowScorer(spec_of(tiny, variant, token_budget=512)))
    for budget in (64, 37):
        assert torch.equal(whole, all_rows(WindowScorer(spec_of(tiny, variant, token_budget=budget))))


def test_only_the_rows_that_predict_scored_tokens_come(tiny: Path) -> None:
    scorer = WindowScorer(spec_of(tiny, token_budget=40))
    whole = all_rows(scorer)
    for num_scored in (1, 39, 40, 90):
        assert torch.equal(all_rows(scorer, num_scored), whole[-num_scored:])
    assert max(len(piece) for piece in scorer.logits(TOKENS, 149)) <= 64


def test_a_window_that_does_not_fit_is_refused(tiny: Path) -> None:
    scorer = WindowScorer(spec_of(tiny, kv_capacity_tokens=64, max_context=64))
    with pytest.raises(ValueError, match="the cache holds 64"):
        list(scorer.logits(TOKENS, 1))
    for num_scored in (0, 20):
        with pytest.raises(ValueError, match=f"num_scored {num_scored}: a window of 20 tokens predicts 1 to 19"):
            list(scorer.logits(TOKENS[:20], num_scored))


def test_between_windows_an_engine_generates_with_the_same_weights(tiny: Path) -> None:
    scorer = WindowScorer(spec_of(tiny))
    before = all_rows(scorer)
    sampling = SamplingParams(max_tokens=5, temperature=0.0, ignore_eos=True)
    engine, generated = scorer.engine(), list[int]()
    assert engine.add(GenerationRequest(request_id="r", prompt_token_ids=TOKENS[:30], sampling=sampling)).admitted
    while engine.has_work:
        generated += [token for delta in engine.step() for token in delta.token_ids]
    logits = torch.cat(list(scorer.logits([*TOKENS[:30], *generated], 5)))
    assert generated == logits.argmax(dim=1).tolist()
    assert torch.equal(all_rows(scorer), before)
