"""The same rows give the same tokens however they are run, and an end counts once; speed is not looked at."""

from __future__ import annotations

from pathlib import Path

import pytest

from batch_jobs.bench.generation_cells import GenerationCell, GenerationRate, engine, one_row, run_cell, transformers
from cluster.engine_spec import EngineSpec
from cluster.variants import Variant
from engine.text import TextCodec

MAX_TOKENS = 12


@pytest.fixture(scope="module")
def cell(checkpoint: Path) -> GenerationCell:
    """Two of the four end before the twelfth token."""
    codec = TextCodec(str(checkpoint))
    chats = ["Say yes.", "Reply with the single word: no", "Count upwards from one.", "What is a cat?"]
    spec = EngineSpec(
        replica_id="bench",
        checkpoint=str(checkpoint),
        variant=Variant(name="fp32", dtype="fp32"),
        kv_dtype="fp32",
        kv_capacity_tokens=2048,
        max_context=512,
        max_sequences=2,
        max_waiting=8,
        num_threads=1,
    )
    prompts = [codec.encode_chat([{"role": "user", "content": text}]) for text in chats]
    return GenerationCell(kind="engine", spec=spec, rows=[(ids, MAX_TOKENS - i) for i, ids in enumerate(prompts)])


@pytest.fixture(scope="module")
def all_at_once(cell: GenerationCell) -> GenerationRate:
    return engine(cell)


def test_every_row_is_run_to_its_end(all_at_once: GenerationRate, cell: GenerationCell) -> None:
    assert all_at_once.rows == 4
    assert 4 <= all_at_once.tokens < 4 * MAX_TOKENS


def test_one_row_at_a_time_gives_the_same_tokens(all_at_once: GenerationRate, cell: GenerationCell) -> None:
    assert one_row(cell).tokens == all_at_once.tokens


def test_padding_and_what_follows_an_end_are_not_counted(all_at_once: GenerationRate, cell: GenerationCell) -> None:
    assert transformers(cell).tokens == all_at_once.tokens


def test_a_cell_in_a_process_of_its_own(all_at_once: GenerationRate, cell: GenerationCell) -> None:
    found = run_cell(cell)
    assert (found.rows, found.tokens) == (4, all_at_once.tokens)
    assert found.tokens_per_s > 0
