"""Decode steps as CUDA graphs, one a batch size of a short list, sampling included; it knows slots, no sequences."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence as Items
from functools import partial

import torch
from torch import Tensor

from engine.gpu.decoder import DecodeContext, GpuDecoder
from engine.gpu.device_state import DeviceState
from engine.gpu.graph_capture import captured
from kernels.gpu.decode_attention import allocate_split_plan, plan_splits
from kernels.gpu.kv_cache import PagedKv
from kernels.gpu.sampling import sample_tokens, sampling_scratch


def batch_sizes(most: int) -> list[int]:
    """1, 2, 4, then every eighth: a batch computes at most seven rows that nobody wants, and under 4 % from 200 on."""
    sizes = [size for size in (1, 2, 4, *range(8, most, 8)) if size < most]
    return [*sizes, most]


class DecodeGraphs:
    """Replays the smallest captured batch that holds a step's rows."""

    def __init__(self, decoder: GpuDecoder, kv_cache: list[PagedKv], state: DeviceState, *, heads: int) -> None:
        self._decoder, self._kv_cache, self._state = decoder, kv_cache, state
        self._plan = allocate_split_plan(
            max_batch=state.max_sequences,
            heads=heads,
            kv_heads=kv_cache[0].kv_heads,
            head_dim=kv_cache[0].head_dim,
            dtype=kv_cache[0].keys.dtype,
            device=state.device,
        )
        self._token_ids = torch.zeros(state.max_sequences, dtype=torch.int64, device=state.device)
        self._scratch = sampling_scratch(state.max_sequences, decoder.vocab, state.device)
        self._graphs: dict[int, torch.cuda.CUDAGraph] = {}
        self._logits = torch.zeros(state.max_sequences, decoder.vocab, device=state.device)
        self.sizes = batch_sizes(state.max_sequences)

    def size_for(self, num_rows: int) -> int:
        return self.sizes[bisect_left(self.sizes, num_rows)]

    def run(self, num_rows: int) -> tuple[Tensor, Tensor]:
        """Drawn tokens [B] and logits [B, vocab] of a batch that lies in the state's staging; good until the next."""
        graph = self._graphs.get(num_rows)
        if graph is None:
            self.step(num_rows)
        else:
            graph.replay()
        return self._token_ids[:num_rows], self._logits[:num_rows]

    def capture(self, pool: tuple[int, int], sizes: Items[int] | None = None) -> None:
        """Largest first, so that all share the memory of the largest. The state must hold no sequence yet."""
        stream = torch.cuda.Stream()
        for size in sorted(sizes if sizes is not None else self.sizes, reverse=True):
            self._state.staging[0].fill_(self._state.pad_slot)
            self._graphs[size] = captured(partial(self.step, size), pool, stream)

    def step(self, num_rows: int) -> None:
        """The whole step, launched kernel by kernel."""
        state = self._state
        batch = state.prepare(num_rows)
        plan_splits(batch.seq_lens, batch.rows, self._plan)
        context = DecodeContext(block_tables=state.block_tables, plan=self._plan)
        logits = self._logits[:num_rows]
        self._decoder.decode(batch.token_ids, context, self._kv_cache, logits)
        token_ids = self._token_ids[:num_rows]
        sample_tokens(logits, batch.sampling, token_ids, self._scratch)
        state.keep(batch.rows, token_ids)
