"""Penalties and biases against float64, from histories of odd lengths in slots of any order."""

import pytest
import torch

from kernels.gpu.penalties import apply_logit_bias, apply_penalties, apply_penalties_reference


def _rows(device, rows, vocab, max_context, num_slots):
    lengths = torch.randint(0, max_context + 1, (rows,), dtype=torch.int32)
    return {
        "history": torch.randint(0, vocab, (num_slots, max_context), dtype=torch.int32).to(device),
        "slots": torch.randperm(num_slots)[:rows].int().to(device),
        "lengths": lengths.to(device),
        "prompt_lengths": (lengths * torch.rand(rows)).int().to(device),
        "repetition": (1 + torch.rand(rows)).to(device),
        "presence": torch.randn(rows, device=device),
        "frequency": torch.randn(rows, device=device) / 4,
    }


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-6), (torch.bfloat16, 4e-3)])
@pytest.mark.parametrize(("rows", "vocab", "max_context"), [(1, 50, 40), (3, 1500, 2100), (17, 97, 33)])
def test_close_to_float64(device, relative_error, dtype, bound, rows, vocab, max_context):
    logits = torch.randn(rows, vocab, device=device).to(dtype)
    given = _rows(device, rows, vocab, max_context, rows + 5)
    expected = apply_penalties_reference(logits, **given)
    counts = torch.full((rows, vocab), 12345, dtype=torch.int32, device=device)
    assert apply_penalties(logits, **given, counts=counts) is logits
    assert relative_error(logits, expected) < bound


def test_rows_without_a_penalty_keep_their_bits(device):
    logits = torch.randn(4, 300, device=device)
    given = _rows(device, 4, 300, 64, 4)
    for name, none in (("repetition", 1.0), ("presence", 0.0), ("frequency", 0.0)):
        given[name][1:3] = none
    before = logits.clone()
    apply_penalties(logits, **given)
    assert torch.equal(logits[1:3], before[1:3])
    assert not torch.equal(logits[0], before[0])


def test_tokens_after_the_length_are_not_seen(device):
    logits = torch.ones(1, 10, device=device)
    given = _rows(device, 1, 10, 8, 1) | {
        "history": torch.tensor([[3, 3, 4, 5, 5, 9, 9, 9]], dtype=torch.int32, device=device),
        "lengths": torch.tensor([5], dtype=torch.int32, device=device),
        "prompt_lengths": torch.tensor([2], dtype=torch.int32, device=device),
        "repetition": torch.tensor([2.0], device=device),
        "presence": torch.tensor([0.25], device=device),
        "frequency": torch.tensor([1.0], device=device),
    }
    apply_penalties(logits, **given)
    assert logits[0].tolist() == [1, 1, 1, 0.5, 0.5 - 1.25, 0.5 - 2.25, 1, 1, 1, 1]


def test_logit_bias_adds_up_bans_and_skips_negative_rows(device):
    logits = torch.zeros(3, 7, device=device)
    apply_logit_bias(
        logits,
        torch.tensor([0, 2, 2, -1, -1], device=device),
        torch.tensor([1, 6, 6, 3, 99], device=device),
        torch.tensor([float("-inf"), 1.5, 1.0, 8.0, float("-inf")], device=device),
    )
    expected = torch.zeros(3, 7, device=device)
    expected[0, 1], expected[2, 6] = float("-inf"), 2.5
    assert torch.equal(logits, expected)
