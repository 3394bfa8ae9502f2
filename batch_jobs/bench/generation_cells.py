"""One engine or peer through the rows of a job, in a process of its own; it reads prompts from stdin and prints JSON.

Run as `python -m batch_jobs.bench.generation_cells < CELL`. Seconds are from the first prompt to the last token, models
loaded and warm; tokens are those up to each row's end, padding and what follows an end not counted.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import msgspec

from cluster.engine_spec import EngineSpec
from cluster.request import GenerationRequest, SamplingParams

Kind = Literal["engine", "one_row", "transformers"]
WARM_TOKENS = 4
Rows = Sequence[tuple[list[int], int]]


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationCell:
    kind: Kind
    spec: EngineSpec
    """Its max_sequences is the batch."""
    rows: list[tuple[list[int], int]]
    """Prompts, and how many tokens each may get."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRate:
    rows: int
    tokens: int
    """Generated."""
    seconds: float

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / self.seconds


def run_cell(cell: GenerationCell) -> GenerationRate:
    """In a fresh process with its own thread counts; CalledProcessError where it fails."""
    threads = str(cell.spec.num_threads)
    env = os.environ | {"OMP_NUM_THREADS": threads, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    command = [sys.executable, "-m", "batch_jobs.bench.generation_cells"]
    finished = subprocess.run(command, env=env, check=True, input=msgspec.json.encode(cell), stdout=subprocess.PIPE)
    return msgspec.json.decode(finished.stdout.splitlines()[-1], type=GenerationRate)


def engine(cell: GenerationCell) -> GenerationRate:
    """All rows handed to the engine at once: no job is faster."""
    return _through_engine(cell, at_once=len(cell.rows))


def one_row(cell: GenerationCell) -> GenerationRate:
    """The next row when the one before has ended."""
    return _through_engine(cell, at_once=1)


def _through_engine(cell: GenerationCell, *, at_once: int) -> GenerationRate:
    from engine.engine import build_engine

    built = build_engine(cell.spec)

    def generate(rows: Rows) -> int:
        left = deque(
            GenerationRequest(
                request_id=f"r{i}",
                prompt_token_ids=ids,
                sampling=SamplingParams(max_tokens=max_tokens, temperature=0.0),
            )
            for i, (ids, max_tokens) in enumerate(rows)
        )
        tokens = 0
        while left or built.has_work:
            while left and built.add(left[0]).admitted:  # it takes no more waiting prompts than twice its cache
                left.popleft()
            tokens += sum(len(delta.token_ids) for delta in built.step())
        return tokens

    generate([(ids[::-1], WARM_TOKENS) for ids, _ in cell.rows[:8]])
    return _timed(cell.rows, at_once, generate)


def transformers(cell: GenerationCell) -> GenerationRate:
    """transformers' generate, prompts sorted by length, padded on the left in batches of the spec's max_sequences."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(cell.spec.num_threads)
    dtype = torch.float32 if cell.spec.device == "cpu" else torch.bfloat16
    model = AutoModelForCausalLM.from_pretrained(cell.spec.checkpoint, dtype=dtype).to(cell.spec.device)
    ends = model.generation_config.eos_token_id
    ends = set(ends) if isinstance(ends, list) else {ends}
    pad = min(ends)

    def generate(rows: Rows) -> int:
        longest, most = max(len(ids) for ids, _ in rows), max(max_tokens for _, max_tokens in rows)
        padded = torch.tensor([[pad] * (longest - len(ids)) + ids for ids, _ in rows], device=cell.spec.device)
        mask = torch.tensor([[0] * (longest - len(ids)) + [1] * len(ids) for ids, _ in rows], device=cell.spec.device)
        with torch.inference_mode():
            found = model.generate(padded, attention_mask=mask, max_new_tokens=most, do_sample=False, pad_token_id=pad)
        answers = found[:, longest:].tolist()
        lengths = [next((at + 1 for at, token in enumerate(ids) if token in ends), len(ids)) for ids in answers]
        return sum(min(length, max_tokens) for length, (_, max_tokens) in zip(lengths, rows, strict=True))

    generate([(ids, WARM_TOKENS) for ids, _ in cell.rows[:2]])
    return _timed(sorted(cell.rows, key=lambda row: len(row[0])), cell.spec.max_sequences, generate)


def _timed(rows: Rows, at_once: int, generate: Callable[[Rows], int]) -> GenerationRate:
    started_s = time.perf_counter()
    tokens = sum(generate(rows[first : first + at_once]) for first in range(0, len(rows), at_once))
    return GenerationRate(rows=len(rows), tokens=tokens, seconds=time.perf_counter() - started_s)


KINDS: dict[str, Callable[[GenerationCell], GenerationRate]] = {
    "engine": engine,
    "one_row": one_row,
    "transformers": transformers,
}


def main() -> None:
    cell = msgspec.json.decode(sys.stdin.buffer.read(), type=GenerationCell)
    print(msgspec.json.encode(KINDS[cell.kind](cell)).decode())


if __name__ == "__main__":
    main()
