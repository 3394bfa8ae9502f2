"""GpuRunner: one scheduled step on a CUDA device: decodes by a graph, prompts before them; it schedules nothing.

A step is launched and read apart: `launch` returns while the GPU works, and the next step may be launched before this
one is read, because whatever a decode needs of the last step lies on the device (engine.gpu.device_state).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cluster.engine_spec import EngineSpec
from engine.decoder_config import DecoderConfig
from engine.gpu.decode_graphs import DecodeGraphs
from engine.gpu.decoder import GpuDecoder
from engine.gpu.device_state import DeviceState
from engine.gpu.extras import launch_logprobs, redraw
from engine.gpu.host_copy import to_host
from engine.gpu.prompt_batch import PromptBatch
from engine.gpu.prompt_graphs import PromptGraphs
from engine.gpu.prompt_logprobs import ROWS_AT_ONCE, launch_prompt_logprobs
from engine.gpu.weights import CheckpointSource, DummySource, GpuWeights, load_gpu_weights
from engine.linear import FLOAT_DTYPES
from engine.sequence import ChunkResult, ScheduledChunk
from engine.trial import trial_sequence
from engine.weights import CheckpointTensors
from kernels.gpu.kv_cache import allocate_paged_kv
from kernels.gpu.sampling import sample_tokens

STAGINGS = 4
"""Host buffers in turn: one may still be on its way while the next step's is filled."""
NOT_FINITE = "the model's output is not finite: the weights or the cache are damaged"
Reader = Callable[[], list[ChunkResult]]


class GpuRunner:
    """A model with its KV cache on one GPU, or a share of it; one thread of a process drives it."""

    lookahead = 1

    def __init__(self, spec: EngineSpec) -> None:
        """Loads the weights; `allocate` must follow before a step, and `capture` may."""
        torch.set_num_threads(1)
        self._spec = spec
        self._config = DecoderConfig.read(Path(spec.checkpoint), spec.max_context)
        self.vocab_size = self._config.shape.vocab
        self.eos_token_ids = self._config.eos_token_ids
        self._decoder = GpuDecoder(self._config, _weights(spec, self._config), spec.max_context, spec.device)
        self._state = DeviceState(
            max_sequences=spec.max_sequences,
            max_context=spec.max_context,
            block_size=spec.block_size,
            device=spec.device,
        )
        self._stagings = [torch.zeros(2, spec.max_sequences, dtype=torch.int32) for _ in range(STAGINGS)]
        if spec.device != "cpu":
            self._stagings = [staging.pin_memory() for staging in self._stagings]
        self._num_launched = 0
        self.allocate(0)

    @property
    def kv_bytes_per_token(self) -> int:
        return self._config.shape.kv_bytes_per_token(FLOAT_DTYPES[self._spec.kv_dtype].itemsize)

    def allocate(self, num_blocks: int) -> None:
        """A cache of so many blocks in place of the one before; decodes run kernel by kernel until `capture`."""
        shape, spec = self._config.shape, self._spec
        self.num_blocks = num_blocks
        self._graphs, self._prompt_graphs, self._kv_cache = None, None, []  # first: two caches may not fit
        self._kv_cache = allocate_paged_kv(
            num_blocks=num_blocks,
            layers=shape.layers,
            kv_heads=shape.kv_heads,
            head_dim=shape.head_dim,
            block_size=spec.block_size,
            dtype=FLOAT_DTYPES[spec.kv_dtype],
            device=spec.device,
        )
        self._graphs = DecodeGraphs(self._decoder, self._kv_cache, self._state, heads=shape.heads)
        self._prompt_graphs = PromptGraphs(self._decoder, self._kv_cache, self._state, token_budget=spec.token_budget)

    def capture(self) -> None:
        """Records a decode step of every batch size and passes of short prompts; no sequence may be running."""
        pool = torch.cuda.graph_pool_handle()
        with torch.inference_mode():
            self._graphs.capture(pool)
            self._prompt_graphs.capture(pool)

    def assume(self, chunks: list[ScheduledChunk]) -> None:
        """Takes the word of made-up sequences that all before their chunks is computed, so that decodes are decodes."""
        before = [chunk._replace(start=0, num_tokens=chunk.start, samples=True) for chunk in chunks if chunk.start]
        if before:
            self._state.enter(before)

    @property
    def block_size(self) -> int:
        return self._spec.block_size

    @property
    def max_sequences(self) -> int:
        return self._spec.max_sequences

    def assume_decodes(self, batch: int, context: int) -> None:
        """Made-up sequences of so many tokens, staged for `replay_decodes`; they share what blocks there are."""
        length = -(-context // self._spec.block_size)
        tables = [[(row * length + index) % self.num_blocks for index in range(length + 4)] for row in range(batch)]
        sequences = [
            trial_sequence(num_tokens=context + 1, num_computed_tokens=context, block_table=table, slot=row)
            for row, table in enumerate(tables)
        ]
        chunks = [ScheduledChunk.of(sequence, 1) for sequence in sequences]
        with torch.inference_mode():
            self.assume(chunks)
            self._state.stage_decodes(chunks, batch, self._stagings[0].numpy())
            self._state.staging.copy_(self._stagings[0])

    def replay_decodes(self, batch: int) -> None:
        """One more step of what `assume_decodes` staged; nothing is read."""
        with torch.inference_mode():
            self._graphs.run(batch)

    def run(self, chunks: list[ScheduledChunk]) -> list[ChunkResult]:
        return self.launch(chunks)()

    def launch(self, chunks: list[ScheduledChunk]) -> Reader:
        """Prompts first, then the decodes: two passes, so that decodes always replay a graph."""
        decodes, prompts = [], []
        for index, chunk in enumerate(chunks):
            (decodes if self._state.has_last_token_of(chunk) else prompts).append(index)
        with torch.inference_mode():
            readers = []
            if prompts:
                readers.append((prompts, self._launch_prompts([chunks[index] for index in prompts])))
            if decodes:
                readers.append((decodes, self._launch_decodes([chunks[index] for index in decodes])))
        return lambda: _in_order(readers, len(chunks))

    @torch.inference_mode()
    def prompt_logits(self, chunk: ScheduledChunk, first_row: int) -> Iterator[Tensor]:
        """Computes the chunk's K and V, then the logits [R, vocab] fp32 of its rows from `first_row` on, in order."""
        self._state.enter([chunk])
        batch = PromptBatch.of([chunk], self._state.block_tables, self._state.block_size)
        hidden = self._decoder.prompt(batch.token_ids.long(), batch.context, self._kv_cache)
        for start in range(first_row, len(hidden), ROWS_AT_ONCE):
            yield self._decoder.weights.head.rows(hidden[start : start + ROWS_AT_ONCE])

    def _launch_decodes(self, chunks: list[ScheduledChunk]) -> Reader:
        size = self._graphs.size_for(len(chunks))
        staging = self._stagings[self._num_launched % STAGINGS]
        self._num_launched += 1
        self._state.stage_decodes(chunks, size, staging.numpy())
        self._state.staging.copy_(staging, non_blocking=True)
        token_ids, logits = self._graphs.run(size)
        slots = self._state.batch.rows[: len(chunks)]
        return self._sampled(chunks, slots, token_ids[: len(chunks)], logits[: len(chunks)])

    def _launch_prompts(self, chunks: list[ScheduledChunk]) -> Reader:
        state = self._state
        state.enter(chunks)
        hidden = self._prompts_hidden(chunks)
        sampling = [index for index, chunk in enumerate(chunks) if chunk.samples]
        prompt_logprobs = launch_prompt_logprobs(chunks, hidden, self._decoder.weights.head)
        if not sampling:
            return lambda: [ChunkResult(token_id=None, prompt_logprobs=found) for found in prompt_logprobs()]
        ends = np.cumsum([chunk.num_tokens for chunk in chunks])
        last = [ends[index] - 1 for index in sampling], [chunks[index].sequence.slot for index in sampling]
        where = torch.tensor(last, pin_memory=hidden.is_cuda).to(hidden.device, non_blocking=True)
        rows, slots = where.unbind()
        logits = self._decoder.weights.head.rows(hidden[rows])
        token_ids = torch.empty(len(sampling), dtype=torch.int64, device=hidden.device)
        sample_tokens(logits, state.sampling_of(slots), token_ids)
        state.keep(slots, token_ids)
        drawn = self._sampled([chunks[index] for index in sampling], slots, token_ids, logits)

        def read() -> list[ChunkResult]:
            results = [ChunkResult(token_id=None, prompt_logprobs=found) for found in prompt_logprobs()]
            for index, result in zip(sampling, drawn(), strict=True):
                results[index] = replace(result, prompt_logprobs=results[index].prompt_logprobs)
            return results

        return read

    def _prompts_hidden(self, chunks: list[ScheduledChunk]) -> Tensor:
        """[tokens of the chunks, hidden]; by a graph where one holds them."""
        size = self._prompt_graphs.size_for(chunks)
        if size is None:
            batch = PromptBatch.of(chunks, self._state.block_tables, self._state.block_size)
            return self._decoder.prompt(batch.token_ids.long(), batch.context, self._kv_cache)
        self._prompt_graphs.stage(chunks, size)
        return self._prompt_graphs.run(size)[: sum(chunk.num_tokens for chunk in chunks)]

    def _sampled(self, chunks: list[ScheduledChunk], slots: Tensor, token_ids: Tensor, logits: Tensor) -> Reader:
        """The reader of what was drawn; rows with penalties or biases are drawn again, outside of the graph."""
        redraw(chunks, slots, token_ids, logits, self._state, self.eos_token_ids)
        logprobs = launch_logprobs(chunks, token_ids, logits)
        drawn = to_host(token_ids)

        def read() -> list[ChunkResult]:
            return [
                ChunkResult(token_id=token_id, logprob=logprob)
                if token_id >= 0
                else ChunkResult(token_id=None, error=NOT_FINITE)
                for token_id, logprob in zip(drawn().tolist(), logprobs(), strict=True)
            ]

        return read


def _weights(spec: EngineSpec, config: DecoderConfig) -> GpuWeights:
    if spec.load_format == "dummy":
        return load_gpu_weights(DummySource(spec.device, spec.variant.method), config.shape, spec.variant)
    with CheckpointTensors(Path(spec.weights)) as tensors:
        return load_gpu_weights(CheckpointSource(tensors, spec.variant.method, spec.device), config.shape, spec.variant)


def _in_order(readers: list[tuple[list[int], Reader]], num_chunks: int) -> list[ChunkResult]:
    results: list[ChunkResult] = [ChunkResult(token_id=None)] * num_chunks
    for indices, reader in readers:
        for index, result in zip(indices, reader(), strict=True):
            results[index] = result
    return results
