"""The decoder against transformers' own: every family, and every row the same alone, in a batch and in chunks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from cluster.request import GenerationRequest
from cluster.variants import Variant
from engine.decoder_config import DecoderConfig
from engine.decoder_weights import load_decoder_weights
from engine.model import Decoder
from engine.sequence import ScheduledChunk, Sequence
from engine.token_batch import TokenBatch
from kernels.kv_layout import LayerCache, allocate_kv_cache
from tests.engine.stepping import FP32, GREEDY, VARIANTS

FAMILIES = ("llama", "llama3", "llama-linear", "mistral", "qwen2", "qwen3")


class Model:
    """A decoder and an empty cache of 64 blocks."""

    def __init__(self, folder: Path, variant: Variant) -> None:
        config = DecoderConfig.read(folder, max_context=512)
        shape = config.shape
        self.decoder = Decoder(config, load_decoder_weights(folder, shape, variant), max_context=512)
        self.vocab = shape.vocab
        dtype = torch.float32 if variant.dtype == "fp32" else torch.bfloat16
        self.cache: list[LayerCache] = allocate_kv_cache(
            num_blocks=64, layers=shape.layers, kv_heads=shape.kv_heads, head_dim=shape.head_dim, dtype=dtype
        )

    def logits(self, *chunks: ScheduledChunk) -> torch.Tensor:
        batch = TokenBatch.of(list(chunks), block_size=16)
        hidden = self.decoder.hidden_states(self.decoder.embed(batch.token_ids), batch, self.cache)
        for chunk in chunks:
            chunk.sequence.num_computed_tokens += chunk.num_tokens
        return self.decoder.logits(hidden)


def sequence_of(token_ids: list[int], first_block: int) -> Sequence:
    request = GenerationRequest(request_id="r", prompt_token_ids=token_ids, sampling=GREEDY)
    blocks = list(range(first_block, first_block + len(token_ids) // 16 + 1))[::-1]
    return Sequence(
        request=request, token_ids=token_ids, num_prompt_tokens=len(token_ids), seed=0, arrival=0, block_table=blocks
    )


def prompts(vocab: int) -> list[list[int]]:
    random = np.random.default_rng(0)
    return [random.integers(0, vocab, length).tolist() for length in (1, 7, 33, 90)]


def whole(sequence: Sequence) -> ScheduledChunk:
    return ScheduledChunk.of(sequence, sequence.num_uncomputed_tokens)


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_those_of_transformers(family: str, tiny_checkpoints: dict[str, Path]) -> None:
    reference = AutoModelForCausalLM.from_pretrained(tiny_checkpoints[family], dtype=torch.float32)
    model = Model(tiny_checkpoints[family], FP32)
    for index, token_ids in enumerate(prompts(model.vocab)):
        with torch.inference_mode():
            expected = reference(torch.tensor([token_ids])).logits[0]
        torch.testing.assert_close(
            model.logits(whole(sequence_of(token_ids, 10 * index))), expected, atol=1e-4, rtol=1e-4
        )


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_a_row_is_the_same_alone_in_a_batch_and_in_chunks(
    family: str, variant: Variant, tiny_checkpoints: dict[str, Path]
) -> None:
    model = Model(tiny_checkpoints[family], variant)
    asked = prompts(model.vocab)
    alone = [model.logits(whole(sequence_of(token_ids, 0))) for token_ids in asked]
    together = model.logits(*(whole(sequence_of(token_ids, 10 * i)) for i, token_ids in enumerate(asked)))
    assert torch.equal(together, torch.cat(alone))
    chunked = [sequence_of(token_ids, 10 * i) for i, token_ids in enumerate(asked)]
    parts: list[list[torch.Tensor]] = [[] for _ in asked]
    while any(sequence.num_uncomputed_tokens for sequence in chunked):
        running = [i for i, sequence in enumerate(chunked) if sequence.num_uncomputed_tokens]
        sizes = [min(5 + i, chunked[i].num_uncomputed_tokens) for i in running]
        chunks = [ScheduledChunk.of(chunked[i], n) for i, n in zip(running, sizes, strict=True)]
        for i, part in zip(running, model.logits(*chunks).split(sizes), strict=True):
            parts[i].append(part)
    for i, expected in enumerate(alone):
        assert torch.equal(torch.cat(parts[i]), expected)


def test_quantised_logits_stay_near_the_exact_ones(tiny_checkpoints: dict[str, Path]) -> None:
    token_ids = prompts(250)[-1]
    exact = Model(tiny_checkpoints["mistral"], FP32).logits(whole(sequence_of(token_ids, 0)))
    errors = {}
    for variant in VARIANTS[1:]:
        logits = Model(tiny_checkpoints["mistral"], variant).logits(whole(sequence_of(token_ids, 0)))
        errors[variant.name] = float((logits - exact).norm() / exact.norm())
    assert errors["bf16"] < 0.01
    assert errors["int8"] < 0.05
    assert errors["nf4"] < 0.4
    assert errors["bf16"] < errors["int8"] < errors["nf4"]
