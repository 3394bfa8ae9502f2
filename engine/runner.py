"""Runner: one scheduled step on the model: tokens in, next tokens out; it schedules nothing and changes no sequence."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from cluster.engine_spec import EngineSpec
from cluster.request import GenerationRequest, SamplingParams, TokenLogprob
from engine.decoder_config import DecoderConfig
from engine.decoder_weights import load_decoder_weights
from engine.linear import FLOAT_DTYPES
from engine.model import Decoder
from engine.sampling_batch import sampling_batch
from engine.sequence import ChunkResult, ScheduledChunk, Sequence
from engine.token_batch import TokenBatch
from kernels import threads
from kernels.kv_layout import allocate_kv_cache, kv_block_bytes
from kernels.sampling import SampledTokens, sample

if TYPE_CHECKING:
    from engine.decode_steps import DecodeSteps

# Rows of logits at a time where a prompt's own are asked for: 64 x 49,152 x 4 bytes is 12.6 MB, a whole chunk 100 MB.
PROMPT_LOGPROB_ROWS = 64


class Runner:
    """A model with its KV cache; one thread of a process drives it."""

    def __init__(self, spec: EngineSpec) -> None:
        # torch's own threads spin at barriers, which stalls a step when another process has the core; its share of a
        # step (an embedding lookup) is not worth them.
        torch.set_num_threads(1)
        threads.set_num_threads(spec.num_threads)
        folder = Path(spec.checkpoint)
        config = DecoderConfig.read(folder, spec.max_context)
        shape, dtype = config.shape, FLOAT_DTYPES[spec.kv_dtype]
        weights = load_decoder_weights(Path(spec.weights), shape, spec.variant, spec.device)
        self.weight_bytes = weights.nbytes
        self.vocab_size = shape.vocab
        self.eos_token_ids = config.eos_token_ids
        self.num_blocks = spec.kv_capacity_tokens // spec.block_size
        self.kv_bytes = self.num_blocks * kv_block_bytes(
            shape.layers, shape.kv_heads, shape.head_dim, spec.block_size, dtype
        )
        self._spec = spec
        self._decoder = Decoder(config, weights, spec.max_context, spec.device)
        self._kv_cache = allocate_kv_cache(
            num_blocks=self.num_blocks,
            layers=shape.layers,
            kv_heads=shape.kv_heads,
            head_dim=shape.head_dim,
            block_size=spec.block_size,
            dtype=dtype,
            device=spec.device,
        )
        self._decode_steps = self._recorded_decodes(shape.hidden) if spec.device == "cpu" else None
        self._warm_up()

    def _recorded_decodes(self, hidden_size: int) -> DecodeSteps:
        # Imported here: it compiles CPU kernels, of which another device has no use.
        from engine.decode_steps import DecodeSteps

        return DecodeSteps(
            self._decoder,
            self._kv_cache,
            hidden_size=hidden_size,
            max_tokens=self._spec.max_sequences,
            max_blocks=-(-self._spec.max_context // self._spec.block_size),
        )

    def _warm_up(self) -> None:
        """A first step loads every kernel's machine code, 0.5 s that no request should wait for."""
        request = GenerationRequest(request_id="warm-up", prompt_token_ids=[0], sampling=SamplingParams())
        sequence = Sequence(request=request, token_ids=[0], num_prompt_tokens=1, seed=0, arrival=0, block_table=[0])
        self.run([ScheduledChunk.of(sequence, 1)])

    def assume(self, chunks: list[ScheduledChunk]) -> None:
        """Nothing to do: what is computed before a chunk is read from the sequence itself."""

    @property
    def lookahead(self) -> int:
        return 0

    def launch(self, chunks: list[ScheduledChunk]) -> Callable[[], list[ChunkResult]]:
        """The whole step: a CPU has nobody else to do it."""
        results = self.run(chunks)
        return lambda: results

    def run(self, chunks: list[ScheduledChunk]) -> list[ChunkResult]:
        """Computes every chunk's K and V, and the next token of each chunk that reaches its sequence's end."""
        with torch.inference_mode():
            batch = TokenBatch.of(chunks, self._spec.block_size, self._spec.device)
            if self._decode_steps is not None and len(batch.token_ids) == len(chunks) <= self._spec.max_sequences:
                hidden, logits = self._decode_steps.run(batch)
            else:
                hidden = self._decoder.hidden_states(self._decoder.embed(batch.token_ids), batch, self._kv_cache)
                logits = None
            return self._results(chunks, hidden, logits)

    @torch.inference_mode()
    def prompt_logits(self, chunk: ScheduledChunk, first_row: int) -> Iterator[Tensor]:
        """Computes the chunk's K and V, then the logits [R, vocab] fp32 of its rows from `first_row` on, in order."""
        batch = TokenBatch.of([chunk], self._spec.block_size, self._spec.device)
        hidden = self._decoder.hidden_states(self._decoder.embed(batch.token_ids), batch, self._kv_cache)
        for start in range(first_row, len(hidden), PROMPT_LOGPROB_ROWS):
            yield self._decoder.logits(hidden[start : start + PROMPT_LOGPROB_ROWS])

    def _results(self, chunks: list[ScheduledChunk], hidden: Tensor, logits: Tensor | None) -> list[ChunkResult]:
        ends = list(accumulate(chunk.num_tokens for chunk in chunks))
        prompt_logprobs = [
            self._prompt_logprobs(chunk, hidden[end - chunk.num_tokens : end])
            for chunk, end in zip(chunks, ends, strict=True)
        ]
        sampling = [index for index, chunk in enumerate(chunks) if chunk.samples]
        results = [ChunkResult(token_id=None, prompt_logprobs=logprobs) for logprobs in prompt_logprobs]
        if sampling:
            if len(sampling) < len(hidden):
                rows = [ends[index] - 1 for index in sampling]
                hidden, logits = hidden[rows], None if logits is None else logits[rows]
            logits = self._decoder.logits(hidden) if logits is None else logits
            next_tokens = self._next_tokens([chunks[index].sequence for index in sampling], hidden, logits)
            for index, result in zip(sampling, next_tokens, strict=True):
                results[index] = replace(result, prompt_logprobs=prompt_logprobs[index])
        return results

    def _next_tokens(self, sequences: list[Sequence], hidden: Tensor, logits: Tensor) -> list[ChunkResult]:
        drawn = sample(logits, sampling_batch(sequences, self.eos_token_ids))
        token_ids = drawn.token_ids.tolist()
        # Of 576 normed values, not of 49,152 logits: what is finite here is finite there.
        finite = hidden.sum(dim=1).isfinite().tolist()
        logprobs = _logprobs(drawn, sequences)
        return [
            ChunkResult(token_id=token_id, logprob=logprob)
            if is_finite
            else ChunkResult(
                token_id=None, error="the model's output is not finite: the weights or the cache are damaged"
            )
            for token_id, logprob, is_finite in zip(token_ids, logprobs, finite, strict=True)
        ]

    def _prompt_logprobs(self, chunk: ScheduledChunk, hidden: Tensor) -> list[TokenLogprob | None] | None:
        """A row predicts the next token: those of the chunk's successors that belong to the prompt."""
        sequence, num_top = chunk.sequence, chunk.sequence.request.sampling.prompt_logprobs
        if num_top is None:
            return None
        first = chunk.start + 1
        targets = sequence.token_ids[first : min(first + chunk.num_tokens, sequence.num_prompt_tokens)]
        found: list[TokenLogprob | None] = []
        for start in range(0, len(targets), PROMPT_LOGPROB_ROWS):
            part = targets[start : start + PROMPT_LOGPROB_ROWS]
            found += _target_logprobs(self._decoder.logits(hidden[start : start + len(part)]), part, num_top)
        return found


def _target_logprobs(logits: Tensor, targets: list[int], num_top: int) -> list[TokenLogprob]:
    normaliser = logits.logsumexp(dim=1, keepdim=True)
    own = logits.gather(1, torch.tensor(targets, device=logits.device)[:, None]) - normaliser
    top = logits.topk(num_top, dim=1)
    ids, values = top.indices.tolist(), (top.values - normaliser).tolist()
    return [
        TokenLogprob(token_id=target, logprob=logprob, top=list(zip(row_ids, row_values, strict=True)))
        for target, logprob, row_ids, row_values in zip(targets, own[:, 0].tolist(), ids, values, strict=True)
    ]


def _logprobs(drawn: SampledTokens, sequences: list[Sequence]) -> list[TokenLogprob | None]:
    """Of the rows that asked; all rows were given as many alternatives as the one that asked for most."""
    if drawn.logprobs is None:
        return [None] * len(sequences)
    token_ids, logprobs = drawn.token_ids.tolist(), drawn.logprobs.tolist()
    top_ids = drawn.top_ids.tolist() if drawn.top_ids is not None else [[]] * len(sequences)
    top_logprobs = drawn.top_logprobs.tolist() if drawn.top_logprobs is not None else [[]] * len(sequences)
    found: list[TokenLogprob | None] = []
    for row, sequence in enumerate(sequences):
        wanted = sequence.request.sampling.logprobs
        top = zip(top_ids[row][:wanted], top_logprobs[row][:wanted], strict=True)
        logprob = TokenLogprob(token_id=token_ids[row], logprob=logprobs[row], top=list(top))
        found.append(None if wanted is None else logprob)
    return found
