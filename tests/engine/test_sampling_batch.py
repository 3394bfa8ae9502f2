"""The arrays of a step's sampling parameters: one row a sequence, penalties and bans only where they are asked for."""

from __future__ import annotations

from cluster.request import GenerationRequest, SamplingParams
from engine.sampling_batch import NEVER, SEED_MASK, sampling_batch
from engine.sequence import Sequence


def sequence(sampling: SamplingParams, output: list[int] | None = None, seed: int = 7) -> Sequence:
    request = GenerationRequest(request_id="r", prompt_token_ids=[1, 2], sampling=sampling)
    return Sequence(request=request, token_ids=[1, 2, *(output or [])], num_prompt_tokens=2, seed=seed, arrival=0)


def test_plain_rows_have_neither_penalties_nor_bias() -> None:
    batch = sampling_batch(
        [sequence(SamplingParams(temperature=0.5, top_k=3), [9]), sequence(SamplingParams(top_p=0.8, min_p=0.1))], {0}
    )
    assert batch.temperature.tolist() == [0.5, 1.0]
    assert batch.top_k.tolist() == [3, 0]
    assert batch.top_p.tolist() == [1.0, 0.8]
    assert batch.min_p.tolist() == [0.0, 0.1]
    assert batch.position.tolist() == [1, 0]
    assert (batch.penalties, batch.bias, batch.num_logprobs) == (None, None, None)


def test_only_penalised_rows_bring_their_tokens() -> None:
    batch = sampling_batch(
        [
            sequence(SamplingParams(), [5]),
            sequence(SamplingParams(repetition_penalty=1.2), [6, 7]),
            sequence(SamplingParams(presence_penalty=0.5), []),
        ],
        {0},
    )
    penalties = batch.penalties
    assert penalties is not None
    assert penalties.token_ids.tolist() == [1, 2, 6, 7, 1, 2]
    assert penalties.starts.tolist() == [0, 0, 4, 6]
    assert penalties.output_starts.tolist() == [0, 2, 6]
    assert penalties.repetition.tolist() == [1.0, 1.2, 1.0]
    assert penalties.presence.tolist() == [0.0, 0.0, 0.5]


def test_bias_and_bans() -> None:
    early = SamplingParams(min_tokens=2, logit_bias={3: 1.5}, stop_token_ids=(8,))
    batch = sampling_batch(
        [
            sequence(early, [5]),
            sequence(early, [5, 6]),
            sequence(SamplingParams(min_tokens=1, ignore_eos=True)),
            sequence(SamplingParams()),
        ],
        {0, 2},
    )
    bias = batch.bias
    assert bias is not None
    assert bias.token_ids.tolist() == [3, 0, 2, 8, 3]
    assert bias.values.tolist() == [1.5, NEVER, NEVER, NEVER, 1.5]
    assert bias.starts.tolist() == [0, 4, 5, 5, 5]


def test_the_row_that_wants_most_logprobs_decides() -> None:
    rows = [sequence(SamplingParams(logprobs=wanted)) for wanted in (None, 0, 4)]
    assert sampling_batch(rows, {0}).num_logprobs == 4
    assert sampling_batch(rows[:2], {0}).num_logprobs == 0


def test_any_integer_is_a_seed() -> None:
    batch = sampling_batch([sequence(SamplingParams(), seed=seed) for seed in (-1, 2**64 + 5, 3)], {0})
    assert batch.seed.tolist() == [SEED_MASK, 5, 3]
