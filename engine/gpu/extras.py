"""What few requests ask of a step beyond the draw in its graph: penalties, biases, log-probabilities; no host waits."""

from __future__ import annotations

from collections.abc import Callable, Set
from collections.abc import Sequence as Items

import torch
from torch import Tensor

from cluster.request import SamplingParams, TokenLogprob
from engine.gpu.device_state import DeviceState
from engine.gpu.host_copy import to_host
from engine.sampling_batch import is_penalised, row_bias
from engine.sequence import ScheduledChunk
from kernels.gpu.penalties import apply_logit_bias, apply_penalties
from kernels.gpu.sampling import sample_tokens, token_logprobs

Logprobs = Callable[[], list[TokenLogprob | None]]


def redraw(
    chunks: Items[ScheduledChunk],
    slots: Tensor,
    token_ids: Tensor,
    logits: Tensor,
    state: DeviceState,
    eos_token_ids: Set[int],
) -> None:
    """Draws the rows again whose logits are changed first; their entries of `token_ids` [R] and the state follow."""
    biases = [row_bias(chunk.sequence, eos_token_ids, _num_drawn(chunk)) for chunk in chunks]
    changed = [row for row, chunk in enumerate(chunks) if biases[row] or is_penalised(chunk.sequence)]
    if not changed:
        return
    rows = _on_device(changed, token_ids, torch.int64)
    changed_slots = slots[rows].long()
    row_logits = logits[rows].float()
    entries = [(index, token, value) for index, row in enumerate(changed) for token, value in biases[row].items()]
    if entries:
        row_of, tokens, values = zip(*entries, strict=True)
        apply_logit_bias(
            row_logits,
            _on_device(row_of, token_ids, torch.int64),
            _on_device(tokens, token_ids, torch.int64),
            _on_device(values, token_ids, torch.float32),
        )
    params = [chunks[row].sequence.request.sampling for row in changed]
    if any(is_penalised(chunks[row].sequence) for row in changed):
        apply_penalties(
            row_logits,
            state.history,
            changed_slots,
            state.lengths[changed_slots],
            _on_device([chunks[row].sequence.num_prompt_tokens for row in changed], token_ids, torch.int32),
            *(_on_device(values, token_ids, torch.float32) for values in zip(*map(_penalties, params), strict=True)),
        )
    drawn = torch.empty_like(rows)
    sample_tokens(row_logits, state.sampling_of(changed_slots), drawn)
    token_ids.index_copy_(0, rows, drawn)
    state.keep(changed_slots, drawn)


def launch_logprobs(chunks: Items[ScheduledChunk], token_ids: Tensor, logits: Tensor) -> Logprobs:
    """Of the rows that asked, under the logits as the model gave them."""
    wanted = [chunk.sequence.request.sampling.logprobs for chunk in chunks]
    asking = [row for row, count in enumerate(wanted) if count is not None]
    if not asking:
        return lambda: [None] * len(wanted)
    rows = _on_device(asking, token_ids, torch.int64)
    num_top = max(count for count in wanted if count is not None)
    chosen = token_ids[rows]
    own, top_ids, top_logprobs = token_logprobs(logits[rows], chosen.clamp(min=0), num_top)
    copies = [to_host(tensor) for tensor in (chosen, own, top_ids, top_logprobs)]

    def read() -> list[TokenLogprob | None]:
        found: list[TokenLogprob | None] = [None] * len(wanted)
        for row, token, logprob, ids, logprobs in zip(asking, *(copy().tolist() for copy in copies), strict=True):
            top = list(zip(ids, logprobs, strict=True))[: wanted[row]]
            found[row] = TokenLogprob(token_id=token, logprob=logprob, top=top)
        return found

    return read


def _num_drawn(chunk: ScheduledChunk) -> int:
    """Output tokens before the one that this chunk draws, whether the host has read them or not."""
    return chunk.end - chunk.sequence.num_prompt_tokens


def _penalties(params: SamplingParams) -> tuple[float, float, float]:
    return params.repetition_penalty, params.presence_penalty, params.frequency_penalty


def _on_device(values: Items[float], like: Tensor, dtype: torch.dtype) -> Tensor:
    tensor = torch.tensor(values, dtype=dtype, pin_memory=like.is_cuda)
    return tensor.to(like.device, non_blocking=True)
