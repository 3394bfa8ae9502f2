"""The drawn token against a float64 reference that sorts, and the reference's noise against the softmax."""

import numpy as np
import pytest
import torch

from kernels.gpu.sampling import (
    DeviceSampling,
    SamplingConfig,
    gumbel_reference,
    kept_tokens_reference,
    sample_tokens,
    sample_tokens_reference,
    sampling_scratch,
    token_logprobs,
)

INF = float("inf")
# temperature, top_k, top_p, min_p
SETTINGS = [
    (0.0, 0, 1.0, 0.0),
    (1.0, 0, 1.0, 0.0),
    (0.6, 0, 1.0, 0.0),
    (1.0, 50, 1.0, 0.0),
    (1.0, 1, 1.0, 0.0),
    (1.0, 0, 0.9, 0.0),
    (1.0, 0, 0.05, 0.0),
    (1.0, 0, 1.0, 0.1),
    (1.0, 0, 1.0, 1.0),
    (0.7, 20, 0.8, 0.0),
    (1.3, 40, 0.95, 0.05),
    (1.0, 10**6, 0.5, 0.0),
    (0.0, 5, 0.5, 0.5),
]
MIXED = [s for s in SETTINGS if s in ((0.0, 0, 1.0, 0.0), (0.6, 0, 1.0, 0.0), (1.0, 50, 1.0, 0.0), (0.7, 20, 0.8, 0.0))]


def _params(device, settings, seed=0, position=0) -> DeviceSampling:
    temperature, top_k, top_p, min_p = zip(*settings, strict=True)
    rows = torch.arange(len(settings))
    return DeviceSampling(
        temperature=torch.tensor(temperature, dtype=torch.float32, device=device),
        top_k=torch.tensor(top_k, dtype=torch.int32, device=device),
        top_p=torch.tensor(top_p, dtype=torch.float32, device=device),
        min_p=torch.tensor(min_p, dtype=torch.float32, device=device),
        seed=((rows + seed) * 0x123456789ABCDEF - 2**62).to(device),
        position=(rows + position).int().to(device),
    )


def _poisoned(rows, device):
    return torch.full((rows,), -77, dtype=torch.int64, device=device)


def _assert_as_reference(logits, params):
    out = _poisoned(len(logits), logits.device)
    assert sample_tokens(logits, params, out) is out
    assert out.tolist() == sample_tokens_reference(logits, params).tolist()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("vocab", "spread"), [(2051, 1.0), (2048, 3.0), (17, 1.0)])
def test_same_token_as_the_reference(device, dtype, vocab, spread):
    params = _params(device, SETTINGS)
    _assert_as_reference((torch.randn(len(SETTINGS), vocab, device=device) * spread).to(dtype), params)


@pytest.mark.parametrize("setting", [s for s in SETTINGS if s[1] == 50 or s[2] == 0.9 or s[1] == 20])
def test_flat_rows_reject_their_first_candidates(device, setting):
    """Half a unit of spread: the 50 kept of 2048 weigh little, so most rows go through the search."""
    logits = (torch.randn(4, 2048, device=device) * 0.5).bfloat16()
    _assert_as_reference(logits, _params(device, [setting] * 4, seed=100))


def _adversarial(vocab):
    huge, one, two, steps = (torch.zeros(vocab) for _ in range(4))
    huge[vocab // 3] = 1e4
    one += -INF
    one[vocab - 1] = -3.0
    two[5:7] = 2.0  # equal at the edge of top_k 1
    steps += torch.arange(vocab) // 40  # ties at every edge
    banned = torch.randn(vocab)
    banned[::2] = -INF
    signed = torch.zeros(vocab)
    signed[::3] = -0.0
    below = signed.clone()
    below[1::3] = -1.0
    return {"equal": torch.full((vocab,), 0.25), "huge": huge, "one": one, "two": two, "steps": steps,
            "banned": banned, "zeros": signed, "zeros_on_top": below, "negative": -torch.rand(vocab) - 50,
            "tiny": torch.randn(vocab) * 1e-41}  # fmt: skip


@pytest.mark.parametrize("name", list(_adversarial(10)))
def test_adversarial_rows(device, name):
    settings = [s for s in SETTINGS if s[0]]
    if name in ("steps", "equal"):
        settings += [(1.0, 2, 1.0, 0.0), (1.0, 41, 0.99, 0.0)]
    row = _adversarial(300)[name].to(device)
    _assert_as_reference(row.expand(len(settings), -1).contiguous(), _params(device, settings, seed=3))


@pytest.mark.parametrize("vocab", [1, 3, 511, 2049, 6001])
def test_greedy_is_the_lowest_of_the_largest(device, vocab):
    logits = torch.randint(-3, 4, (3, vocab), device=device).bfloat16()
    wanted = [int((row == row.max()).nonzero()[0]) for row in logits]
    for dtype in (torch.int64, torch.int32):
        out = torch.full((3,), -77, dtype=dtype, device=device)
        assert sample_tokens(logits, _params(device, [SETTINGS[0]] * 3), out).tolist() == wanted


def test_a_seed_and_a_position_give_a_token_in_any_batch_and_split(device):
    logits = torch.randn(len(MIXED), 2101, device=device)
    params = _params(device, MIXED)
    whole = sample_tokens(logits, params)
    order = torch.randperm(len(MIXED)).to(device)
    names = DeviceSampling.__dataclass_fields__
    shuffled = DeviceSampling(**{name: getattr(params, name)[order] for name in names})
    assert torch.equal(sample_tokens(logits[order], shuffled), whole[order])
    scratch = sampling_scratch(40, 2101, device)
    config = SamplingConfig(blocks_per_program=2, score_warps=2, choose_warps=8)
    assert torch.equal(sample_tokens(logits, params, scratch=scratch, config=config), whole)
    wide = torch.full((len(MIXED), 2200), 99.0, device=device)
    wide[:, :2101] = logits
    assert torch.equal(sample_tokens(wide[:, :2101], params), whole)


def test_position_and_seed_both_change_the_token(device):
    logits, settings = torch.zeros(3, 2000, device=device), [SETTINGS[1]] * 3
    tokens = [
        sample_tokens(logits, _params(device, settings, seed, position)).tolist() for seed, position in
        ((0, 0), (1, 0), (0, 1))
    ]  # fmt: skip
    assert len({token for row in tokens for token in row}) == 9


@pytest.mark.parametrize("bad", [float("nan"), INF, "all -inf"])
def test_a_row_without_a_finite_maximum_gives_minus_one(device, bad):
    logits = torch.randn(2 * len(MIXED[::3]), 2100, device=device)
    if bad == "all -inf":
        logits[::2] = -INF
    else:
        logits[::2, 2077] = bad
    params = _params(device, [s for s in MIXED[::3] for _ in range(2)])
    tokens = sample_tokens(logits, params, _poisoned(len(logits), device))
    assert (tokens[::2] == -1).all()
    assert tokens[1::2].tolist() == sample_tokens_reference(logits, params).tolist()[1::2]


@pytest.mark.parametrize("setting", [(1.0, 0, 1.0, 0.0), (1.0, 6, 1.0, 0.0), (1.0, 0, 0.8, 0.0), (0.5, 0, 1.0, 0.2)])
def test_the_reference_draws_from_the_filtered_softmax(setting):
    """Chi-square of 3000 draws by the reference's noise, which the kernel's tokens are equal to above."""
    temperature, top_k, top_p, min_p = setting
    logits = torch.randn(12, dtype=torch.float64)
    kept = kept_tokens_reference(logits / temperature, top_k, top_p, min_p)
    scores = (logits / temperature).masked_fill(~kept, -INF)
    draws = 3000
    noise = torch.stack([gumbel_reference(3, position, 12) for position in range(draws)])
    counts = torch.bincount((scores + noise).argmax(1), minlength=12)[kept].double()
    expected = torch.softmax(scores, 0)[kept] * draws
    assert counts.sum() == draws
    degrees = int(kept.sum()) - 1
    assert ((counts - expected) ** 2 / expected).sum() < degrees + 4 * np.sqrt(2 * degrees) + 4


@pytest.mark.gpu
@pytest.mark.parametrize("setting", SETTINGS[1:])
def test_the_kernel_draws_from_the_filtered_softmax(device, setting):
    temperature, top_k, top_p, min_p = setting
    logits, rows = torch.randn(300, device=device), 16384
    params = _params(device, [setting] * rows)
    counts = torch.bincount(sample_tokens(logits.expand(rows, -1).contiguous(), params).cpu(), minlength=300)
    scaled = logits.double().cpu() / (temperature or 1e-9)
    kept = kept_tokens_reference(scaled, top_k, top_p, min_p)
    expected = torch.softmax(scaled.masked_fill(~kept, -INF), 0) * rows
    assert counts[~kept].sum() == 0
    common = expected >= 5
    chi_square = ((counts - expected) ** 2 / expected)[common].sum()
    degrees = max(int(common.sum()) - 1, 1)
    assert chi_square < degrees + 5 * np.sqrt(2 * degrees) + 5


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("spread", [1.0, 3.0])
def test_large_on_the_card(device, dtype, spread):
    """A sum in float32 may leave a token at the edge of top_p on the other side, so a few rows may differ."""
    settings = SETTINGS * 10
    logits = (torch.randn(len(settings), 128256, device=device) * spread).to(dtype)
    params = _params(device, settings)
    tokens = sample_tokens(logits, params).cpu()
    assert (tokens != sample_tokens_reference(logits, params)).sum() <= 2


@pytest.mark.gpu
def test_captured_in_a_graph(device):
    logits, params = torch.randn(len(SETTINGS), 128256, device=device), _params(device, SETTINGS)
    out, scratch = _poisoned(len(SETTINGS), device), sampling_scratch(len(SETTINGS), 128256, device)
    sample_tokens(logits, params, out, scratch)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        sample_tokens(logits, params, out, scratch)
    for _ in range(3):
        logits.normal_()
        params.position.add_(1)
        out.fill_(-77)
        graph.replay()
        assert torch.equal(out, sample_tokens(logits, params))


def test_logprobs(device):
    logits = torch.randn(4, 100, device=device).bfloat16()
    tokens = torch.tensor([3, 99, -1, 0], device=device)
    drawn, top_ids, top = token_logprobs(logits, tokens, 5)
    expected = torch.log_softmax(logits.double(), -1)
    assert torch.allclose(drawn[[0, 1, 3]].double(), expected[[0, 1, 3], [3, 99, 0]], atol=1e-5)
    assert drawn[2].isnan()
    assert torch.allclose(top.double(), expected.topk(5).values, atol=1e-5)
    assert torch.allclose(expected.gather(1, top_ids), top.double(), atol=1e-5)
    assert token_logprobs(logits, tokens, 0)[1].shape == (4, 0)


def test_scratch_of_another_vocabulary_is_refused(device):
    with pytest.raises(ValueError, match="scratch"):
        sample_tokens(torch.zeros(1, 5000, device=device), _params(device, SETTINGS[:1]),
                      scratch=sampling_scratch(1, 2000, device))  # fmt: skip
