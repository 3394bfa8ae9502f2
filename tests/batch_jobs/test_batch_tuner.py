"""The batch size of a job, and the arithmetic that it is shown with."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from batch_jobs.batch_tuner import HEAD_ROWS, LengthSample, choose_batch, sample_head, worthwhile_slice
from batch_jobs.engine_choice import EngineChoice, choose_engine
from batch_jobs.input_files import find_input_files
from batch_jobs.prompts import PromptEncoder
from batch_jobs.reading import Columns
from cluster.config import FleetConfig
from cluster.errors import UserError

SAMPLE = LengthSample(
    num_rows=10, mean_prompt_tokens=90.4, max_prompt_tokens=140, mean_row_bytes=600.0, is_whole_input=True
)


@pytest.fixture(scope="module")
def engine(checkpoint: Path) -> EngineChoice:
    return choose_engine(FleetConfig.built_in(), "int8")


def test_the_head_gives_the_mean_length_of_good_rows(checkpoint: Path, tmp_path: Path) -> None:
    encoder = PromptEncoder(checkpoint=str(checkpoint), max_prompt_tokens=50, raw=True)
    path = tmp_path / "in.jsonl"
    lines = [{"prompt": "one"}, {"prompt": "one two three"}, {"prompt": None}, {"prompt": "word " * 100}]
    path.write_text("\n".join(json.dumps(line) for line in lines))
    sample = sample_head(find_input_files([str(path)]), Columns(), encoder)
    assert (sample.num_rows, sample.mean_prompt_tokens, sample.max_prompt_tokens) == (4, 2.0, 3)
    assert sample.is_whole_input
    path.write_text('{"prompt": "one"}\n' * (HEAD_ROWS + 1))
    sample = sample_head(find_input_files([str(path)]), Columns(), encoder)
    assert (sample.num_rows, sample.is_whole_input) == (HEAD_ROWS, False)


def test_the_batch_is_the_cost_models_for_the_mean_sequence(engine: EngineChoice) -> None:
    choice = choose_batch(engine, SAMPLE, max_tokens=64, num_rows=10_000)
    best = engine.cost_model.best_batch(122, kv_capacity_tokens=engine.spec.kv_capacity_tokens, max_sequences=256)
    assert choice.batch == best.batch
    assert choice.arithmetic == f"context = 90 prompt tokens (mean of 10 rows) + 64 / 2 = 122; {best.arithmetic}"
    assert choice.slice_rows * 4 >= choice.batch


def test_a_small_cache_and_a_small_input_bound_it(engine: EngineChoice) -> None:
    small = replace(engine, spec=replace(engine.spec, kv_capacity_tokens=256))
    assert choose_batch(small, SAMPLE, max_tokens=64, num_rows=10_000).batch == 2
    few = choose_batch(engine, SAMPLE, max_tokens=64, num_rows=3)
    assert few.batch == 3
    assert few.arithmetic.endswith("but the input has 3 rows")


def test_a_slice_is_worth_its_way_through_ray(engine: EngineChoice) -> None:
    choice = choose_batch(engine, SAMPLE, max_tokens=64, num_rows=10_000)
    assert worthwhile_slice(engine, choice, SAMPLE, 64) == choice.slice_rows
    short = replace(SAMPLE, mean_prompt_tokens=2.0)
    fast = replace(choice, batch=8, slice_rows=4, step_s=0.001)
    rows = worthwhile_slice(engine, fast, short, 10)
    batch_s = engine.cost_model.prefill_s(8 * 2) + 10 * 0.001
    assert 4 < rows <= 0.25 * 8 / batch_s < rows + 1
    assert worthwhile_slice(engine, fast, SAMPLE, 10) < rows


def test_the_engines_cache_holds_the_batch_and_one_whole_context(engine: EngineChoice) -> None:
    spec = engine.spec_for_batch(40, longest_tokens=200)
    assert (spec.max_sequences, spec.kv_capacity_tokens) == (40, 40 * 208)
    assert spec.token_budget > 40
    assert engine.spec_for_batch(2, longest_tokens=200).kv_capacity_tokens == engine.spec.max_context
    assert engine.spec_for_batch(256, longest_tokens=4096).kv_capacity_tokens == engine.spec.kv_capacity_tokens


def test_an_unknown_variant_is_named_with_the_nearest(checkpoint: Path) -> None:
    with pytest.raises(UserError, match="variant 'in8': not in the configuration; did you mean int8"):
        choose_engine(FleetConfig.built_in(), "in8")
    assert choose_engine(FleetConfig.built_in(), None).spec.variant.name == "bf16"
