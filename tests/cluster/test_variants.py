"""Variant bytes: against sizes worked out by hand, and against each other."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.model_shape import ModelShape
from cluster.variants import DENSE, FORMATS, Variant

BF16 = Variant(name="bf16")
INT8 = Variant(name="int8", method="int8")
NF4 = Variant(name="nf4", method="nf4")
GPTQ = Variant(name="gptq-int4", method="gptq")

SMOLLM_LINEARS = 30 * (576 * 960 + 576 * 576 + 576 * 3072 + 1536 * 576)
SMOLLM_NORMS = (2 * 30 + 1) * 576 * 4
SMOLLM_HEAD = 49152 * 576 * 2
SMOLLM_ROWS = 30 * (960 + 576 + 3072 + 576)


@pytest.mark.parametrize(
    ("variant", "linears"),
    [
        (BF16, 2 * SMOLLM_LINEARS),
        (replace(BF16, dtype="fp32"), 4 * SMOLLM_LINEARS),
        (INT8, SMOLLM_LINEARS + 4 * SMOLLM_ROWS),
        (NF4, SMOLLM_LINEARS // 2 + 4 * SMOLLM_LINEARS // 64),
    ],
)
def test_a_tied_head_is_held_once_and_read_every_step(smollm: ModelShape, variant: Variant, linears: int) -> None:
    head = SMOLLM_HEAD * (2 if variant.dtype == "fp32" else 1)
    assert variant.resident_bytes(smollm, "cpu") == linears + SMOLLM_NORMS + head
    assert variant.read_bytes(smollm, "cpu") == variant.resident_bytes(smollm, "cpu")


def test_an_untied_embedding_is_held_but_not_read(llama_8b: ModelShape) -> None:
    assert GPTQ.resident_bytes(llama_8b, "gpu") / 1e9 == pytest.approx(5.81, abs=0.01)
    assert GPTQ.read_bytes(llama_8b, "gpu") / 1e9 == pytest.approx(4.76, abs=0.01)
    assert BF16.read_bytes(llama_8b, "gpu") / 1e9 == pytest.approx(15.01, abs=0.01)


def test_an_int8_head_halves_the_head(smollm: ModelShape) -> None:
    saved = INT8.read_bytes(smollm, "cpu") - replace(INT8, head="int8").read_bytes(smollm, "cpu")
    assert saved == SMOLLM_HEAD // 2 - 4 * 49152


def test_arithmetic_by_method() -> None:
    methods = {variant.name: variant.flops_dtype for variant in (BF16, INT8, NF4, GPTQ)}
    assert methods == {"bf16": "bf16", "int8": "int8", "nf4": "bf16", "gptq-int4": "bf16"}


@settings(deadline=None, max_examples=50)
@given(rows=st.integers(1, 500), columns=st.integers(1, 500))
def test_packed_bytes_never_fall_below_the_bits(rows: int, columns: int) -> None:
    for packed in (*DENSE.values(), *FORMATS["cpu"].values(), *FORMATS["gpu"].values()):
        size = packed.matrix_bytes(rows, columns)
        assert size * 8 >= rows * columns * packed.bits
        assert size >= packed.matrix_bytes(max(1, rows - 1), columns)
        assert packed.matrix_bytes(rows, columns) <= packed.matrix_bytes(rows, columns + 64)
