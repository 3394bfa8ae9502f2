"""Short prompts' passes through the layers as CUDA graphs, one a number of tokens of a short list; no head, no draw.

Launched kernel by kernel, a pass keeps the host busy for 12 to 29 ms (Llama-3.1-8B's 32 layers, 290 launches), whatever
its length; that is longer than the GPU takes for up to 500 tokens in bf16, and every decode beside it waits.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence as Items
from functools import partial

import torch
from torch import Tensor

from engine.gpu.decoder import GpuDecoder
from engine.gpu.device_state import DeviceState
from engine.gpu.graph_capture import captured
from engine.gpu.prompt_batch import PromptBatch, PromptLayout
from engine.sequence import ScheduledChunk
from kernels.gpu.kv_cache import PagedKv

SIZES = (16, 32, 64, 96, 128, 192, 256, 384, 512, 768, 1024)
"""Tokens. Above, the GPU takes longer than the host (fp8: 13 ms for 1,024), and padding would cost more than it."""
MOST_SEQUENCES = 8
"""Of a graph; attention's grid has programs for all of them, which end at once where there are fewer."""


class PromptGraphs:
    """Replays the smallest captured size that holds a step's tokens."""

    def __init__(self, decoder: GpuDecoder, kv_cache: list[PagedKv], state: DeviceState, *, token_budget: int) -> None:
        self._decoder, self._kv_cache, self._state = decoder, kv_cache, state
        self.sizes = [size for size in SIZES if size <= token_budget]
        most = self.sizes[-1] if self.sizes else 0
        shape = decoder.shape

        def zeros(*sizes: int, dtype: torch.dtype) -> Tensor:
            return torch.zeros(sizes, dtype=dtype, device=state.device)

        self._flat = zeros(self._layout(most).size, dtype=torch.int32)
        # Rows past the chunks' are nobody's; attention leaves them as they were, so they must not begin as NaN, of
        # which a row quantised with others would make a column of outliers.
        self._attended = zeros(most, shape.heads, shape.head_dim, dtype=decoder.dtype)
        self._hidden = zeros(most, shape.hidden, dtype=decoder.dtype)
        self._graphs: dict[int, torch.cuda.CUDAGraph] = {}

    def size_for(self, chunks: Items[ScheduledChunk]) -> int | None:
        """None: no graph holds them."""
        tokens = sum(chunk.num_tokens for chunk in chunks)
        if len(chunks) > MOST_SEQUENCES or not self._graphs or tokens > self.sizes[-1]:
            return None
        return self.sizes[bisect_left(self.sizes, tokens)]

    def stage(self, chunks: Items[ScheduledChunk], size: int) -> None:
        layout = self._layout(size)
        flat = torch.from_numpy(layout.filled(chunks, self._state.block_size))
        if self._flat.is_cuda:
            flat = flat.pin_memory()
        self._flat[: layout.size].copy_(flat, non_blocking=True)

    def run(self, size: int) -> Tensor:
        """[size, hidden] of what is staged, good until the next run: the chunks' tokens, then rows of nobody."""
        graph = self._graphs.get(size)
        if graph is None:
            self.step(size)
        else:
            graph.replay()
        return self._hidden[:size]

    def capture(self, pool: tuple[int, int], sizes: Items[int] | None = None) -> None:
        """Largest first, so that all share the memory of the largest. No sequence may be running."""
        stream = torch.cuda.Stream()
        for size in sorted(sizes if sizes is not None else self.sizes, reverse=True):
            self._stage_nobody(size)
            self._graphs[size] = captured(partial(self.step, size), pool, stream)

    def step(self, size: int) -> None:
        """The pass, launched kernel by kernel."""
        layout = self._layout(size)
        batch = PromptBatch.within(
            self._flat[: layout.size], layout, self._state.block_tables, attended=self._attended[:size]
        )
        self._hidden[:size] = self._decoder.prompt(batch.token_ids.long(), batch.context, self._kv_cache)

    def _layout(self, size: int) -> PromptLayout:
        return PromptLayout(tokens=size, sequences=MOST_SEQUENCES, longest=size)

    def _stage_nobody(self, size: int) -> None:
        layout = self._layout(size)
        flat = self._flat[: layout.size]
        flat.zero_()
        _, _, slots, _, _, _ = layout.views(flat)
        slots.fill_(-1)
