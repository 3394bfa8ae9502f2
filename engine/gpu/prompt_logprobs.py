"""Log-probabilities of a prompt's own tokens, as perplexity needs them; computed behind the step, read when asked."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Items

import torch
from torch import Tensor

from cluster.request import TokenLogprob
from engine.gpu.host_copy import to_host
from engine.gpu.linear import Head
from engine.sequence import ScheduledChunk
from kernels.gpu.sampling import token_logprobs

ROWS_AT_ONCE = 512
"""Of logits: 512 x 128,256 x 4 bytes are 263 MB."""
Found = list[TokenLogprob | None] | None


def launch_prompt_logprobs(chunks: Items[ScheduledChunk], hidden: Tensor, head: Head) -> Callable[[], list[Found]]:
    """`hidden` [T, hidden] of the chunks one after another; None for a chunk whose request did not ask."""
    parts = hidden.split([chunk.num_tokens for chunk in chunks])
    readers = [_launch(chunk, part, head) for chunk, part in zip(chunks, parts, strict=True)]
    return lambda: [reader() for reader in readers]


def _launch(chunk: ScheduledChunk, hidden: Tensor, head: Head) -> Callable[[], Found]:
    """A row predicts the next token: those of the chunk's successors that belong to the prompt."""
    sequence, num_top = chunk.sequence, chunk.sequence.request.sampling.prompt_logprobs
    if num_top is None:
        return lambda: None
    targets = sequence.token_ids[chunk.start + 1 : min(chunk.end + 1, sequence.num_prompt_tokens)]
    copies = []
    for start in range(0, len(targets), ROWS_AT_ONCE):
        part = torch.tensor(targets[start : start + ROWS_AT_ONCE]).to(hidden.device)
        logits = head.rows(hidden[start : start + len(part)])
        copies.append([to_host(tensor) for tensor in (part, *token_logprobs(logits, part, num_top))])

    def read() -> Found:
        return [
            TokenLogprob(token_id=token, logprob=logprob, top=list(zip(ids, logprobs, strict=True)))
            for part in copies
            for token, logprob, ids, logprobs in zip(*(copy().tolist() for copy in part), strict=True)
        ]

    return read
