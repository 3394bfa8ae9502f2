"""An engine stays within the memory that it was granted, alone and beside another on the same card; measured from
outside, by a process that holds nothing but a context."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from random import Random

import pytest
import torch
import triton

from cluster.errors import UserError
from cluster.variants import Variant
from engine.gpu.runner import GpuRunner
from engine.gpu.startup import start_runner, widest_steps
from tests.engine.gpu.conftest import write_checkpoint, write_smollm2_config
from tests.engine.gpu.granted_engine import granted_spec
from tests.engine.gpu.greedy import generate, spec_of

GRANTED = 4 * 2**30
ROOT = Path(__file__).parents[3]


def used_bytes() -> int:
    """Of the card, by all processes."""
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info()
    return total - free


@contextmanager
def filled_engine(folder: Path, replica_id: str) -> Iterator[dict[str, float]]:
    """What it says of itself, while it still holds its memory."""
    command = [sys.executable, "-m", "tests.engine.gpu.granted_engine", str(folder), replica_id, str(GRANTED)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            line = process.stdout.readline()
            if not line:
                pytest.fail("the engine ended; what it said is on the standard error")
            yield json.loads(line)
        finally:
            process.kill()


@pytest.mark.gpu
def test_a_filled_cache_and_the_widest_step_stay_within_the_grant(tmp_path: Path) -> None:
    folder = write_smollm2_config(tmp_path)
    before = used_bytes()
    with filled_engine(folder, "r0") as said:
        taken = used_bytes() - before
    assert said["capacity_tokens"] > 0
    assert said["filled"] > 0.9
    assert taken <= 1.02 * GRANTED
    # What it was granted it also uses: a capacity of a few blocks would pass the lines above.
    assert taken >= 0.9 * GRANTED


@pytest.mark.gpu
@pytest.mark.parametrize("method", ["none", "gptq", "nf4", "int8", "fp8"])
def test_no_kernel_is_compiled_after_the_start(method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a second for every user of the replica, each time."""
    spec = spec_of(
        write_smollm2_config(tmp_path),
        "cuda",
        Variant(name=method, method=method),
        load_format="dummy",
        kv_capacity_tokens=16384,
        max_sequences=24,
        token_budget=2048,
    )
    runner = start_runner(spec)
    compiled: list[str] = []
    monkeypatch.setattr(
        triton.knobs.runtime,
        "jit_post_compile_hook",
        lambda *, repr, **_: compiled.append(repr),
    )
    chosen = Random(20261123)
    prompts = [[chosen.randrange(3, 40_000) for _ in range(chosen.randint(1, 400))] for _ in range(120)]
    generate(spec, runner, prompts, num_tokens=12)
    assert compiled == []


@pytest.mark.gpu
def test_two_shares_of_one_card_fit_side_by_side(tmp_path: Path) -> None:
    """The second measures itself and not the first, so that both get the same."""
    folder = write_smollm2_config(tmp_path)
    before = used_bytes()
    with ExitStack() as running:
        first = running.enter_context(filled_engine(folder, "r0"))
        second = running.enter_context(filled_engine(folder, "r1"))
        taken = used_bytes() - before
    assert taken <= 1.02 * 2 * GRANTED
    assert second["capacity_tokens"] == pytest.approx(first["capacity_tokens"], rel=0.05)


@pytest.mark.gpu
def test_a_grant_too_small_for_one_sequence_is_refused_with_its_arithmetic(tmp_path: Path) -> None:
    spec = granted_spec(write_smollm2_config(tmp_path), "r0", 256 * 2**20)
    with pytest.raises(UserError) as refused:
        start_runner(spec)
    said = str(refused.value)
    assert said.startswith("engine.max_context: one sequence of 2048 tokens does not fit for bf16")
    for part in ("granted to r0 = 0.268 GB", "weights and state", "activations", "graphs", "-> 0 blocks = 0 tokens"):
        assert part in said


def test_the_steps_that_measure_the_peak_ask_for_all_that_takes_memory(tmp_path: Path, device: str) -> None:
    """As many ends of prompts as may run, then one chunk of the whole budget; both run."""
    folder = write_checkpoint(tmp_path, num_hidden_layers=1)
    spec = spec_of(
        folder, device, Variant(name="fp32", dtype="fp32"), max_sequences=2, token_budget=6, kv_capacity_tokens=32
    )
    runner = GpuRunner(spec)
    runner.allocate(2)
    for chunks, lengths in zip(widest_steps(spec), ([3, 3], [6]), strict=True):
        assert [chunk.num_tokens for chunk in chunks] == lengths
        for length, result in zip(lengths, runner.run(chunks), strict=True):
            assert result.error is None
            assert len(result.logprob.top) == 20
            assert [len(found.top) for found in result.prompt_logprobs] == [20] * (length - 1)
