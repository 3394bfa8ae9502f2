"""Steps of the real model: transformers' greedy text, sampling that no neighbour changes, log-probabilities, limits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from transformers import LlamaForCausalLM

from cluster.errors import UserError
from cluster.request import SamplingParams
from engine.runner import Runner
from engine.sequence import ScheduledChunk, Sequence
from kernels.kv_layout import kv_block_bytes
from tests.engine.stepping import FP32, GREEDY, VARIANTS, Stepper, spec_of

TEXTS = (
    "The",
    "The capital of France is",
    "def fibonacci(n):\n",
    "1, 2, 3, 4, 5,",
    "Once upon a time, in a small village near the mountains, there lived a clockmaker who",
    "<|im_start|>user\nName three colours.<|im_end|>\n<|im_start|>assistant\n",
    "Water boils at 100 degrees Celsius at sea level. At higher altitudes the air pressure is lower, so water " * 6,
)
NEW_TOKENS = 16


@pytest.fixture(scope="module")
def reference(smollm2: Path) -> LlamaForCausalLM:
    return LlamaForCausalLM.from_pretrained(smollm2, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def prompts(smollm2: Path) -> list[list[int]]:
    tokenizer = Tokenizer.from_file(str(smollm2 / "tokenizer.json"))
    return [tokenizer.encode(text).ids for text in TEXTS]


@pytest.fixture(scope="module")
def expected(reference: LlamaForCausalLM, prompts: list[list[int]]) -> list[list[int]]:
    """Greedy, to the end of NEW_TOKENS whatever comes."""
    texts = []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        # Without a mask generate takes the <|im_end|> of a chat prompt for padding, its pad_token_id being the same.
        made = reference.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW_TOKENS, do_sample=False, eos_token_id=None
        )
        texts.append(made[0, len(prompt) :].tolist())
    return texts


@pytest.fixture(scope="module")
def exact(smollm2: Path) -> Stepper:
    return Stepper(Runner(spec_of(smollm2)))


@pytest.fixture(scope="module")
def tiny(tiny_checkpoints: dict[str, Path]) -> Stepper:
    return Stepper(Runner(spec_of(tiny_checkpoints["llama"])))


def test_greedy_text_is_that_of_transformers(
    exact: Stepper, prompts: list[list[int]], expected: list[list[int]]
) -> None:
    for prompt, text in zip(prompts, expected, strict=True):
        sequence = exact.sequence(prompt)
        assert exact.generate(sequence, NEW_TOKENS) == text
        exact.release(sequence)


@pytest.mark.parametrize("most_tokens", [4096, 7])
def test_greedy_text_in_a_batch_with_late_comers_and_chunks(
    most_tokens: int, exact: Stepper, prompts: list[list[int]], expected: list[list[int]]
) -> None:
    """A new sequence joins every other step, so that prefill chunks and decodes share steps."""
    waiting, running, done = [exact.sequence(prompt) for prompt in prompts], [], []
    everyone = list(waiting)
    while len(done) < len(everyone):
        running += [waiting.pop(0)] if waiting else []
        exact.step(running, most_tokens)
        done += [sequence for sequence in running if sequence.num_output_tokens >= NEW_TOKENS]
        running = [sequence for sequence in running if sequence not in done]
    exact.release(*everyone)
    assert [sequence.token_ids[sequence.num_prompt_tokens :][:NEW_TOKENS] for sequence in everyone] == expected


def test_a_recomputed_sequence_goes_on_as_before(
    exact: Stepper, prompts: list[list[int]], expected: list[list[int]]
) -> None:
    """As after a preemption: new blocks, nothing computed, the output so far prefilled like a prompt."""
    sequence = exact.sequence(prompts[4])
    exact.generate(sequence, 9)
    exact.release(sequence)
    again = exact.sequence(prompts[4])
    sequence.block_table, sequence.num_computed_tokens = again.block_table, 0
    assert exact.generate(sequence, NEW_TOKENS) == expected[4]
    exact.release(sequence)


@pytest.mark.parametrize("variant", VARIANTS[1:], ids=lambda variant: variant.name)
def test_any_variant_gives_the_same_text_alone_and_in_a_batch(
    variant: object, smollm2: Path, prompts: list[list[int]]
) -> None:
    stepper = Stepper(Runner(spec_of(smollm2, variant)))  # type: ignore[arg-type]
    asked = prompts[:5]
    alone = [stepper.generate(stepper.sequence(prompt), 8) for prompt in asked]
    together = [stepper.sequence(prompt) for prompt in asked]
    for _ in range(8):
        stepper.step(together)
    assert [sequence.token_ids[sequence.num_prompt_tokens :] for sequence in together] == alone


def test_a_seed_gives_the_same_text_whatever_else_runs(tiny: Stepper) -> None:
    sampling = SamplingParams(max_tokens=20, temperature=1.0, top_p=0.9, ignore_eos=True)
    alone = tiny.sequence([5, 6, 7], sampling, seed=11)
    text = tiny.generate(alone, 20)
    others = [
        tiny.sequence([1, 2], replace(sampling, temperature=0.7, top_k=5), seed=3),
        tiny.sequence([5, 6, 7], sampling, seed=11),
        tiny.sequence([5, 6, 7], sampling, seed=12),
        tiny.sequence([9] * 40, replace(sampling, frequency_penalty=1.0, logit_bias={4: 5.0}), seed=11),
    ]
    for _ in range(20):
        tiny.step(others)
    assert others[1].token_ids[3:] == text
    assert others[2].token_ids[3:] != text
    tiny.release(alone, *others)


@pytest.mark.parametrize("seed", [-1, 2**64 + 5])
def test_any_integer_is_a_seed(seed: int, tiny: Stepper) -> None:
    sequence = tiny.sequence([1], SamplingParams(max_tokens=4), seed=seed)
    assert len(tiny.generate(sequence, 4)) == 4
    tiny.release(sequence)


def test_penalties_and_bias_reach_the_draw(tiny: Stepper) -> None:
    greedy = tiny.sequence([8, 8, 8], GREEDY)
    first = tiny.generate(greedy, 1)[0]
    banned = tiny.sequence([8, 8, 8], replace(GREEDY, logit_bias={first: -100.0}))
    assert tiny.generate(banned, 1)[0] != first
    forced = tiny.sequence([8, 8, 8], replace(GREEDY, logit_bias={77: 1000.0}))
    assert tiny.generate(forced, 3) == [77, 77, 77]
    penalised = tiny.sequence([8, 8, 8], replace(GREEDY, frequency_penalty=50.0, logit_bias={77: 100.0, 78: 80.0}))
    assert tiny.generate(penalised, 2) == [77, 78]
    tiny.release(greedy, banned, forced, penalised)


def test_min_tokens_bans_what_would_end_the_text(tiny: Stepper) -> None:
    eos = next(iter(tiny.runner.eos_token_ids))
    push = {eos: 1000.0, 33: 900.0, 44: 800.0}
    sampling = SamplingParams(max_tokens=8, min_tokens=2, temperature=0.0, stop_token_ids=(33,), logit_bias=push)
    sequence = tiny.sequence([1, 2, 3], sampling)
    assert tiny.generate(sequence, 3) == [44, 44, eos]
    free = tiny.sequence([1, 2, 3], replace(sampling, ignore_eos=True))
    assert tiny.generate(free, 2) == [eos, eos]
    tiny.release(sequence, free)


def test_logprobs_are_those_of_the_raw_logits(
    exact: Stepper, reference: LlamaForCausalLM, prompts: list[list[int]]
) -> None:
    sampling = replace(GREEDY, logprobs=3, logit_bias={100: 1000.0})
    with_logprobs, without = exact.sequence(prompts[1], sampling), exact.sequence(prompts[3])
    result, other = exact.step([with_logprobs, without])
    with torch.inference_mode():
        expected = reference(torch.tensor([prompts[1]])).logits[0, -1].log_softmax(dim=-1)
    assert other.logprob is None
    assert result.logprob is not None
    assert result.token_id == result.logprob.token_id == 100
    assert result.logprob.logprob == pytest.approx(float(expected[100]), abs=1e-3)
    top = expected.topk(3)
    assert [token for token, _ in result.logprob.top] == top.indices.tolist()
    assert [logprob for _, logprob in result.logprob.top] == pytest.approx(top.values.tolist(), abs=1e-3)
    exact.release(with_logprobs, without)


@pytest.mark.parametrize("most_tokens", [4096, 50])
def test_prompt_logprobs_cover_the_prompt_once(
    most_tokens: int, exact: Stepper, reference: LlamaForCausalLM, prompts: list[list[int]]
) -> None:
    prompt = prompts[6]
    sequence = exact.sequence(prompt, replace(GREEDY, prompt_logprobs=2))
    neighbour = exact.sequence(prompts[2])
    found = []
    while not sequence.num_output_tokens:
        result = exact.step([neighbour, sequence], most_tokens)[1]
        assert result.prompt_logprobs is not None
        found += result.prompt_logprobs
    assert exact.step([neighbour, sequence])[1].prompt_logprobs == []
    with torch.inference_mode():
        expected = reference(torch.tensor([prompt])).logits[0].log_softmax(dim=-1)
    assert [logprob.token_id for logprob in found] == prompt[1:]
    own = expected[:-1].gather(1, torch.tensor(prompt[1:])[:, None])[:, 0].tolist()
    assert [logprob.logprob for logprob in found] == pytest.approx(own, abs=2e-3)
    assert [token for token, _ in found[40].top] == expected[40].topk(2).indices.tolist()
    exact.release(sequence, neighbour)


def test_a_damaged_sequence_is_named_and_its_neighbour_is_not_touched(tiny_checkpoints: dict[str, Path]) -> None:
    stepper = Stepper(Runner(spec_of(tiny_checkpoints["llama"])))
    good, damaged = stepper.sequence([1, 2, 3]), stepper.sequence([4, 5, 6])
    text = stepper.generate(stepper.sequence([1, 2, 3]), 2)
    stepper.step([good, damaged])
    for cache in stepper.runner._kv_cache:
        cache.values[damaged.block_table[0]] = float("nan")
    fine, broken = stepper.step([good, damaged])
    assert fine.error is None
    assert good.token_ids[3:] == text
    assert broken.token_id is None
    assert "not finite" in str(broken.error)


def test_a_step_changes_no_sequence(tiny: Stepper) -> None:
    sequence = tiny.sequence([1, 2, 3])
    before = (list(sequence.token_ids), sequence.num_computed_tokens, list(sequence.block_table))
    tiny.runner.run([ScheduledChunk.of(sequence, 3)])
    assert (sequence.token_ids, sequence.num_computed_tokens, sequence.block_table) == before
    tiny.release(sequence)


def test_sizes_are_exact(smollm2: Path, exact: Stepper) -> None:
    runner = exact.runner
    shape_bytes = kv_block_bytes(30, 3, 64, 16, torch.float32)
    assert runner.num_blocks == 256
    assert runner.kv_bytes == 256 * shape_bytes
    assert runner.vocab_size == 49152
    assert runner.eos_token_ids == {0, 2}


def test_too_long_a_context_is_refused(smollm2: Path) -> None:
    with pytest.raises(UserError, match=r"max_context 10000: smollm2-135m has positions for 8192"):
        Runner(spec_of(smollm2, FP32, max_context=10000))


def test_sequence_of_one_block_size(tiny_checkpoints: dict[str, Path]) -> None:
    """Blocks of 8 and of 32 give what blocks of 16 give."""
    texts = []
    for block_size in (8, 16, 32):
        spec = spec_of(tiny_checkpoints["qwen3"], block_size=block_size)
        stepper = Stepper(Runner(spec), block_size)
        sequences: list[Sequence] = [stepper.sequence([3, 1, 4, 1, 5]), stepper.sequence(list(range(70)))]
        for _ in range(12):
            stepper.step(sequences)
        texts.append([sequence.token_ids for sequence in sequences])
    assert texts[0] == texts[1] == texts[2]
