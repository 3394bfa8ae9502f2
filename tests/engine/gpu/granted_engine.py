"""A process that starts an engine within a grant of memory, fills its cache and runs its widest step; it judges not.

python -m tests.engine.gpu.granted_engine FOLDER REPLICA_ID BYTES: prints one line of JSON when it has done so, and
keeps what it holds until its standard input ends.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

from cluster.engine_spec import EngineSpec
from cluster.request import GenerationRequest, SamplingParams
from cluster.variants import Variant
from engine.engine import Engine
from engine.gpu.startup import start_runner
from tests.engine.gpu.greedy import spec_of

CONTEXT = 2048
PROMPT = 1900
VOCAB = 49152


def granted_spec(folder: Path, replica_id: str, memory_bytes: int) -> EngineSpec:
    return spec_of(
        folder,
        "cuda",
        Variant(name="bf16"),
        replica_id=replica_id,
        load_format="dummy",
        memory_bytes=memory_bytes,
        kv_capacity_tokens=2**20,
        max_context=CONTEXT,
        max_sequences=128,
        token_budget=2048,
    )


def request(number: int, num_prompt: int, num_output: int) -> GenerationRequest:
    chosen = random.Random(number)
    return GenerationRequest(
        request_id=str(number),
        prompt_token_ids=[chosen.randrange(3, VOCAB) for _ in range(num_prompt)],
        sampling=SamplingParams(max_tokens=num_output, ignore_eos=True, seed=number),
    )


def fill(engine: Engine) -> float:
    """The largest part of the cache that was held at once, of as many long requests as the engine takes."""
    number = 0
    while engine.add(request(number, PROMPT, CONTEXT - PROMPT)).admitted:
        number += 1
    most = 0.0
    while engine.has_work:
        run_step(engine)
        load = engine.load()
        most = max(most, load.kv_tokens_used / load.kv_tokens_capacity)
    return most


def many_prompts_end_at_once(engine: Engine, count: int) -> None:
    for number in range(count):
        assert engine.add(request(10_000 + number, 16, 2)).admitted
    while engine.has_work:
        run_step(engine)


def run_step(engine: Engine) -> None:
    for delta in engine.step():
        assert delta.error is None, delta.error


def main() -> None:
    folder, replica_id, memory_bytes = sys.argv[1:]
    spec = granted_spec(Path(folder), replica_id, int(memory_bytes))
    runner = start_runner(spec)
    engine = Engine(spec, runner)
    filled = fill(engine)
    many_prompts_end_at_once(engine, spec.max_sequences)
    print(json.dumps({"capacity_tokens": runner.num_blocks * spec.block_size, "filled": filled}), flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
