"""sample against its reference and against distributions, and that a seed's draws do not depend on the batch."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kernels import threads
from kernels.sampling import (
    LogitBias,
    Penalties,
    SamplingBatch,
    batch_of_settings,
    greedy_batch,
    sample,
    sample_reference,
    uniform,
)


def draws(logits: Tensor, number: int, **settings: float) -> np.ndarray:
    return sample(
        logits.expand(number, -1), batch_of_settings(number, **{"temperature": 1.0, "seed": 7, **settings})
    ).token_ids.numpy()


def assert_distributed(tokens: np.ndarray, probabilities: np.ndarray) -> None:
    """Chi-square with every expected count above 5, at six standard deviations."""
    counts = np.bincount(tokens, minlength=len(probabilities))
    expected = probabilities * len(tokens)
    assert not counts[probabilities == 0].any()
    kept = expected > 5
    statistic = ((counts[kept] - expected[kept]) ** 2 / expected[kept]).sum()
    freedom = kept.sum() - 1
    assert statistic <= freedom + 6 * np.sqrt(2 * freedom)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_draws_follow_the_softmax(temperature: float) -> None:
    logits = torch.randn(40)
    expected = torch.softmax(logits / temperature, dim=0).double().numpy()
    assert_distributed(draws(logits, 20000, temperature=temperature), expected)


def test_draws_follow_the_softmax_over_a_large_vocabulary() -> None:
    logits = 4 * torch.randn(49152)
    p = torch.softmax(logits.double(), dim=0)
    tokens = draws(logits, 1000)
    thirds = (p.cumsum(0) * 3).long().clamp(max=2)
    masses = torch.zeros(3, dtype=torch.float64).index_add(0, thirds, p)
    assert_distributed(thirds[torch.from_numpy(tokens)].numpy(), masses.numpy())


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        ({"top_k": 3}, [0, 1, 2]),
        ({"top_p": 0.75}, [0, 1]),
        ({"top_p": 0.0}, [0]),
        ({"min_p": 0.24}, [0, 1, 2]),
        ({"top_k": 3, "top_p": 0.9}, [0, 1, 2]),
        ({"top_k": 2, "top_p": 0.5}, [0]),
        ({"top_k": 1}, [0]),
        ({"top_k": 100}, [0, 1, 2, 3, 4]),
    ],
)
def test_filters_keep_what_they_should(settings: dict[str, float], kept: list[int]) -> None:
    p = torch.tensor([0.5, 0.25, 0.125, 0.0625, 0.0625])
    expected = np.zeros(5)
    expected[kept] = p[kept].numpy()
    assert_distributed(draws(p.log(), 5000, **settings), expected / expected.sum())


def test_ties_at_the_edge_are_kept() -> None:
    logits = torch.tensor([2.0, 1.0, 1.0, 1.0, 0.0])
    assert set(draws(logits, 300, top_k=2)) == {0, 1, 2, 3}


def random_batch(seed: int, vocab: int, num_rows: int) -> tuple[Tensor, SamplingBatch]:
    g = np.random.default_rng(seed)
    logits = torch.from_numpy(g.normal(size=(num_rows, vocab)) * g.choice([0.1, 1, 5])).float()
    starts = np.concatenate([[0], np.cumsum(g.integers(0, 100, num_rows))]).astype(np.int64)
    penalties = Penalties(
        repetition=g.choice([1.0, 1.3], num_rows),
        presence=g.choice([0.0, 0.5], num_rows),
        frequency=g.choice([0.0, 0.1], num_rows),
        token_ids=g.integers(0, vocab, starts[-1]).astype(np.int32),
        starts=starts,
        output_starts=(starts[:-1] + starts[1:]) // 2,
    )
    bias = LogitBias(
        token_ids=g.integers(0, vocab, 2 * num_rows).astype(np.int32),
        values=g.choice([-np.inf, 3.0, -1.0], 2 * num_rows).astype(np.float32),
        starts=2 * np.arange(num_rows + 1),
    )
    return logits, SamplingBatch(
        temperature=g.choice([0.0, 0.5, 1.0, 2.0], num_rows),
        top_k=g.choice([0, 1, 5, 40, 3000], num_rows),
        top_p=g.choice([1.0, 0.9, 0.5, 0.999], num_rows),
        min_p=g.choice([0.0, 0.0, 0.1], num_rows),
        seed=g.integers(-(2**63), 2**63 - 1, num_rows),
        position=g.integers(0, 1000, num_rows),
        penalties=penalties if g.random() < 0.5 else None,
        bias=bias if g.random() < 0.5 else None,
        num_logprobs=int(g.choice([0, 1, 5])),
    )


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.integers(0, 2**32), st.sampled_from([50, 64, 1000, 20000]))
def test_equals_the_reference(seed: int, vocab: int) -> None:
    logits, batch = random_batch(seed, vocab, 5)
    ours, reference = sample(logits, batch), sample_reference(logits, batch)
    same = ours.token_ids == reference.token_ids
    # a draw within rounding of the boundary between two tokens may fall to either
    assert same.sum() >= len(same) - 1
    torch.testing.assert_close(ours.logprobs[same], reference.logprobs[same], rtol=1e-5, atol=1e-5)
    if batch.num_logprobs:
        assert torch.equal(ours.top_ids, reference.top_ids)
        torch.testing.assert_close(ours.top_logprobs, reference.top_logprobs, rtol=1e-5, atol=1e-5)


def rows_of(batch: SamplingBatch, rows: slice) -> SamplingBatch:
    fields = ("temperature", "top_k", "top_p", "min_p", "seed", "position")
    return replace(batch, penalties=None, bias=None, **{name: getattr(batch, name)[rows] for name in fields})


@pytest.mark.parametrize("vocab", [1000, 49152])
def test_rows_are_independent(vocab: int) -> None:
    logits, batch = random_batch(3, vocab, 40)
    batch = rows_of(batch, slice(None))
    whole = sample(logits, batch)
    for row in range(len(logits)):
        alone = sample(logits[row : row + 1], rows_of(batch, slice(row, row + 1)))
        assert alone.token_ids == whole.token_ids[row]
        assert alone.logprobs == whole.logprobs[row]
    threads.set_num_threads(2)
    again = sample(logits, batch)
    threads.set_num_threads(1)
    assert torch.equal(again.token_ids, whole.token_ids)
    assert torch.equal(again.logprobs, whole.logprobs)


def test_greedy_takes_the_first_of_equals() -> None:
    logits = torch.zeros(2, 500)
    logits[0, [77, 300]] = 1.0
    assert sample(logits, greedy_batch(2)).token_ids.tolist() == [77, 0]


def test_the_logits_stay_as_they_are() -> None:
    logits, batch = random_batch(11, 64, 6)
    before = logits.clone()
    sample(logits, batch)
    assert torch.equal(logits, before)


def penalties_of(prompt: list[int], output: list[int], **values: float) -> Penalties:
    strengths = {"repetition": 1.0, "presence": 0.0, "frequency": 0.0, **values}
    return Penalties(
        **{name: np.array([value]) for name, value in strengths.items()},
        token_ids=np.array(prompt + output, dtype=np.int32),
        starts=np.array([0, len(prompt) + len(output)]),
        output_starts=np.array([len(prompt)]),
    )


@pytest.mark.parametrize(
    ("values", "winner"),
    [
        ({}, 0),
        ({"repetition": 2.0}, 2),
        ({"presence": 0.5}, 0),
        ({"presence": 2.0}, 1),
        ({"frequency": 0.4}, 1),
    ],
)
def test_penalties_are_those_of_vllm(values: dict[str, float], winner: int) -> None:
    """Token 0 (4.0) was generated three times, 1 (3.0) is in the prompt only, 2 (2.5) is new."""
    logits = torch.tensor([[4.0, 3.0, 2.5] + [-5.0] * 13])
    batch = replace(greedy_batch(1), penalties=penalties_of([1, 1], [0, 0, 0], **values))
    assert sample(logits, batch).token_ids.item() == winner


def test_a_negative_logit_is_penalised_downwards() -> None:
    logits = torch.tensor([[-1.0, -1.5] + [-9.0] * 14])
    batch = replace(greedy_batch(1), penalties=penalties_of([0], [], repetition=2.0))
    assert sample(logits, batch).token_ids.item() == 1


def test_a_bias_of_minus_infinity_bans() -> None:
    logits = torch.zeros(1, 16)
    bias = LogitBias(
        token_ids=np.arange(15, dtype=np.int32), values=np.full(15, -np.inf, np.float32), starts=np.array([0, 15])
    )
    for temperature in (0.0, 1.0):
        batch = replace(batch_of_settings(1, temperature=temperature), bias=bias)
        assert sample(logits, batch).token_ids.item() == 15


def test_logprobs_are_those_of_the_raw_logits() -> None:
    logits = torch.randn(1, 100)
    bias = LogitBias(token_ids=np.array([4], np.int32), values=np.array([100.0], np.float32), starts=np.array([0, 1]))
    drawn = sample(logits, replace(batch_of_settings(1, temperature=0.3), bias=bias, num_logprobs=3))
    assert drawn.token_ids.item() == 4
    expected = torch.log_softmax(logits, dim=-1)
    torch.testing.assert_close(drawn.logprobs, expected[:, 4])
    torch.testing.assert_close(drawn.top_logprobs, expected.topk(3).values)


def test_the_number_that_decides_is_uniform_and_keyed() -> None:
    numbers = np.array([uniform(seed, position) for seed in range(100) for position in range(100)])
    assert len(set(numbers)) == len(numbers)
    counts = np.histogram(numbers, bins=20, range=(0, 1))[0]
    assert ((counts - 500) ** 2 / 500).sum() < 19 + 6 * np.sqrt(38)
    assert abs(np.corrcoef(numbers[:-1], numbers[1:])[0, 1]) < 0.05
