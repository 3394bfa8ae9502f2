"""What of a replica's Load follows from its scheduler: KV held and promised, requests and prompts; it measures none."""

from __future__ import annotations

from collections.abc import Iterable

from engine.scheduler import Scheduler
from engine.sequence import Sequence


def queue_load(scheduler: Scheduler) -> dict[str, int]:
    """Fields of cluster.load.Load."""
    pool, waiting, running = scheduler.pool, scheduler.waiting, scheduler.running
    size = pool.block_size
    num_prefilling = sum(sequence.num_uncomputed_tokens > 1 for sequence in running)
    found = {
        "kv_tokens_capacity": pool.num_blocks * size,
        "kv_tokens_used": pool.num_used * size,
        "kv_tokens_cached": pool.num_cached * size,
        "decode_sequences": len(running) - num_prefilling,
        "waiting_requests": len(waiting),
        "waiting_prefill_tokens": _prefill_tokens(waiting, running),
        "promised_kv_tokens": _promised_tokens([*waiting, *running], size),
    }
    late, under_way = _of_throughput(waiting), _of_throughput(running)
    if late or under_way:
        held_blocks = sum(len(sequence.block_table) for sequence in under_way)
        found |= {
            "throughput_sequences": len(under_way),
            "throughput_kv_tokens": min(pool.num_used, held_blocks) * size,  # a block that two share counts twice
            "throughput_waiting": len(late),
            "throughput_prefill_tokens": _prefill_tokens(late, under_way),
            "throughput_promised_tokens": _promised_tokens([*late, *under_way], size),
        }
    return found


def _of_throughput(sequences: Iterable[Sequence]) -> list[Sequence]:
    return [sequence for sequence in sequences if sequence.request.objective == "throughput"]


def _prefill_tokens(waiting: Iterable[Sequence], running: Iterable[Sequence]) -> int:
    """A running sequence with one token to compute decodes."""
    missing = (sequence.num_uncomputed_tokens for sequence in running)
    return sum(sequence.num_uncomputed_tokens for sequence in waiting) + sum(tokens for tokens in missing if tokens > 1)


def _promised_tokens(sequences: Iterable[Sequence], block_size: int) -> int:
    """Slots that they may still come to need beyond those of their blocks."""
    return sum(
        max(0, each.num_prompt_tokens + each.request.sampling.max_tokens - len(each.block_table) * block_size)
        for each in sequences
    )
