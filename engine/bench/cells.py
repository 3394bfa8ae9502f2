"""One measurement in a process of its own, so that thread pools and memory of one never touch another; it prints JSON.

Run as `python -m engine.bench.cells '{"kind": "decode", ...}'`. A decode rate is taken between the first and the last
token, with every sequence decoding; a prefill rate is prompt tokens over the time to the first token.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

from cluster.engine_spec import EngineSpec
from cluster.request import GenerationRequest, SamplingParams

if TYPE_CHECKING:
    from engine.engine import Engine

REPEATS = 3
VOCABULARY = 40_000
"""Prompts draw their token ids below it; every supported model's vocabulary is larger or the id is wrapped."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """What to measure: `kind` names a function of this file."""

    kind: str
    spec: EngineSpec
    batches: tuple[int, ...] = ()
    prompt_tokens: int = 64
    output_tokens: int = 64
    lengths: tuple[int, ...] = ()
    peer_dtype: str = "bfloat16"


def prompt(seed: int, length: int) -> list[int]:
    """Different for each seed from the first token on, so that no prefix is shared by accident."""
    return [(seed * 7919 + i * 104_729 + i * i * 31) % VOCABULARY + 300 for i in range(length)]


def decode(cell: Cell) -> dict[str, Any]:
    """Decode tokens/s at each batch, and the process's resident set after the largest."""
    engine = _engine(cell.spec)
    seeds = iter(range(1, 1_000_000))
    rates = {}
    for batch in cell.batches:
        times = [
            _decode_s(engine, [prompt(next(seeds), cell.prompt_tokens) for _ in range(batch)], cell.output_tokens)
            for _ in range(REPEATS)
        ]
        rates[batch] = batch * (cell.output_tokens - 1) / statistics.median(times)
    return {
        "decode_tokens_per_s": rates,
        "prefill_tokens_per_s": _prefill_rate(engine, seeds),
        "rss_bytes": engine.load().rss_bytes,
    }


def _decode_s(engine: Engine, prompts: list[list[int]], output_tokens: int) -> float:
    """Seconds from the step in which the last sequence got its first token to the end."""
    sampling = SamplingParams(max_tokens=output_tokens, temperature=0.0, ignore_eos=True)
    for i, ids in enumerate(prompts):
        verdict = engine.add(GenerationRequest(request_id=f"r{i}", prompt_token_ids=ids, sampling=sampling))
        assert verdict.admitted, verdict.reason
    waiting = {f"r{i}" for i in range(len(prompts))}
    done_before = 0
    while waiting:
        deltas = engine.step()
        waiting -= {delta.request_id for delta in deltas if delta.token_ids}
        done_before += sum(len(delta.token_ids) for delta in deltas)
    started = time.perf_counter()
    generated = 0
    while engine.has_work:
        generated += sum(len(delta.token_ids) for delta in engine.step())
    seconds = time.perf_counter() - started
    # Sequences that prefilled first are a few tokens ahead: scale to the tokens of a batch in step.
    return seconds * (len(prompts) * (output_tokens - 1)) / generated


def _prefill_rate(engine: Engine, seeds: Any, length: int = 512) -> float:
    times = [_first_token_s(engine, prompt(next(seeds), length)) for _ in range(REPEATS)]
    return length / statistics.median(times)


def _first_token_s(engine: Engine, ids: list[int]) -> float:
    sampling = SamplingParams(max_tokens=1, temperature=0.0, ignore_eos=True)
    started = time.perf_counter()
    engine.add(GenerationRequest(request_id="first", prompt_token_ids=ids, sampling=sampling))
    while engine.has_work:
        engine.step()
    return time.perf_counter() - started


def kv_cache(cell: Cell) -> dict[str, Any]:
    """Seconds for one more token at each length: from the KV cache, and by computing the whole sequence again."""
    engine = _engine(cell.spec)
    rows = []
    for i, length in enumerate(cell.lengths):
        cached = _decode_s(engine, [prompt(1000 + i, length)], 17) / 16
        recomputed = statistics.median(
            _first_token_s(engine, prompt(2000 + i * 10 + r, length + 1)) for r in range(REPEATS)
        )
        rows.append({"length": length, "with_cache_s": cached, "recomputing_s": recomputed})
    return {"rows": rows}


def prefix(cell: Cell) -> dict[str, Any]:
    """Seconds to the first token of a prompt, new and with all but its last 16 tokens seen before."""
    engine = _engine(cell.spec)
    rows = []
    for i, length in enumerate(cell.lengths):
        cold, warm = [], []
        for repeat in range(REPEATS):
            ids = prompt(3000 + 10 * i + repeat, length)
            cold.append(_first_token_s(engine, ids))
            warm.append(_first_token_s(engine, [*ids[:-16], *prompt(9000 + 10 * i + repeat, 16)]))
        rows.append({"length": length, "cold_s": statistics.median(cold), "hit_s": statistics.median(warm)})
    return {"rows": rows}


def peer(cell: Cell) -> dict[str, Any]:
    """transformers' generate on the same weights: time of n tokens less the time of one is its decode."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(cell.spec.num_threads)
    model = AutoModelForCausalLM.from_pretrained(cell.spec.checkpoint, dtype=getattr(torch, cell.peer_dtype))
    model.generation_config.eos_token_id = None

    def generate_s(ids: list[list[int]], tokens: int) -> float:
        batch = torch.tensor(ids)
        started = time.perf_counter()
        with torch.inference_mode():
            model.generate(
                batch,
                attention_mask=torch.ones_like(batch),
                max_new_tokens=tokens,
                min_new_tokens=tokens,
                do_sample=False,
                pad_token_id=0,
            )
        return time.perf_counter() - started

    rates = {}
    for batch in cell.batches:
        ids = [prompt(i + 1, cell.prompt_tokens) for i in range(batch)]
        seconds = _median(lambda ids=ids: generate_s(ids, cell.output_tokens)) - _median(
            lambda ids=ids: generate_s(ids, 1)
        )
        rates[batch] = batch * (cell.output_tokens - 1) / seconds
    prefill = 512 / _median(lambda: generate_s([prompt(1, 512)], 1))
    return {"decode_tokens_per_s": rates, "prefill_tokens_per_s": prefill}


def _median(measure: Callable[[], float], repeats: int = 2) -> float:
    return statistics.median(measure() for _ in range(repeats))


def _engine(spec: EngineSpec) -> Engine:
    """Built and warmed: the first steps compile or load kernels and touch memory."""
    from engine.engine import build_engine

    engine = build_engine(spec)
    _decode_s(engine, [prompt(500_000 + i, 32) for i in range(4)], 4)
    _first_token_s(engine, prompt(600_000, 96))
    return engine


KINDS: dict[str, Callable[[Cell], dict[str, Any]]] = {
    "decode": decode,
    "kv_cache": kv_cache,
    "prefix": prefix,
    "peer": peer,
}


def main() -> None:
    cell = msgspec.json.decode(sys.argv[1], type=Cell)
    print(json.dumps(KINDS[cell.kind](cell)))


if __name__ == "__main__":
    main()
