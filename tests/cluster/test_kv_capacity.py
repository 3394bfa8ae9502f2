"""The memory formula: its terms, its rounding, its caps and what it refuses."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from cluster.accelerators import Accelerator, accelerator_named
from cluster.errors import UserError
from cluster.kv_capacity import MemoryPlan, kv_capacity
from cluster.model_config import shape_of
from cluster.model_shape import ModelShape
from cluster.variants import Variant

PLAN = MemoryPlan(
    utilization=0.5,
    share=Fraction(1, 3),
    block_size=16,
    kv_dtype="bf16",
    max_context=4096,
    token_budget=128,
    max_sequences=64,
)
INT8 = Variant(name="int8", method="int8")


def test_the_figure_is_the_formula(smollm: ModelShape, host: Accelerator) -> None:
    capacity = kv_capacity(smollm, INT8, host, PLAN)
    terms = {term.name.split()[0]: term.bytes for term in capacity.terms}
    assert terms["memory"] == 16 * 2**30 // 6
    assert terms["weights"] == -INT8.resident_bytes(smollm, "cpu")
    assert capacity.tokens == sum(terms.values()) // (16 * 23040) * 16
    assert capacity.capped_by is None
    assert str(capacity.tokens) in capacity.arithmetic()


@settings(deadline=None, max_examples=50)
@given(
    gib=st.floats(3, 100),
    block_size=st.sampled_from([8, 16, 32, 64, 128]),
    replicas=st.integers(1, 3),
    max_context=st.integers(16, 4096),
    kv_dtype=st.sampled_from(["bf16", "fp32"]),
)
def test_it_is_whole_blocks_and_fits(
    gib: float, block_size: int, replicas: int, max_context: int, kv_dtype: str
) -> None:
    plan = replace(PLAN, share=Fraction(1, replicas), block_size=block_size, max_context=max_context, kv_dtype=kv_dtype)
    host = replace(accelerator_named("L4"), kind="cpu", memory_bytes=int(gib * 2**30))
    try:
        capacity = kv_capacity(shape_of("embedded:smollm2-135m"), INT8, host, plan)
    except UserError:
        assume(False)
    assert capacity.tokens == capacity.blocks * block_size
    assert capacity.kv_bytes <= capacity.available_bytes
    assert max_context <= capacity.tokens <= 64 * (max_context + block_size)
    if capacity.capped_by is None:
        assert capacity.available_bytes - capacity.kv_bytes < block_size * capacity.bytes_per_token


def test_fewer_weight_bytes_leave_more_for_the_cache(smollm: ModelShape, host: Accelerator) -> None:
    variants = [Variant(name="bf16"), INT8, Variant(name="nf4", method="nf4")]
    tokens = [kv_capacity(smollm, variant, host, PLAN).tokens for variant in variants]
    assert tokens == sorted(tokens)
    assert len(set(tokens)) == 3


def test_a_fixed_figure_is_rounded_to_blocks(smollm: ModelShape, host: Accelerator) -> None:
    capacity = kv_capacity(smollm, INT8, host, replace(PLAN, fixed_tokens=16390))
    assert capacity.tokens == 16384
    assert capacity.capped_by is not None
    assert "engine.kv_capacity_tokens is 16390" in capacity.arithmetic()


def test_what_does_not_fit_is_refused_with_the_arithmetic(smollm: ModelShape, host: Accelerator) -> None:
    with pytest.raises(UserError, match=r"kv_capacity_tokens: 10000000 do not fit for int8: .*weights 0\.164 GB"):
        kv_capacity(smollm, INT8, host, replace(PLAN, fixed_tokens=10**7))
    with pytest.raises(UserError, match=r"max_context: one sequence of 4096 tokens does not fit.*fewer replicas"):
        kv_capacity(smollm, INT8, host, replace(PLAN, share=Fraction(1, 40)))
    with pytest.raises(UserError, match="max_context"):
        kv_capacity(smollm, INT8, host, replace(PLAN, fixed_tokens=160))


def test_no_more_is_kept_than_all_sequences_can_use(smollm: ModelShape, h100: Accelerator) -> None:
    capacity = kv_capacity(smollm, INT8, h100, replace(PLAN, share=Fraction(1)))
    assert capacity.tokens == 64 * 4096
    assert capacity.capped_by == "64 sequences of 4096 need no more"
