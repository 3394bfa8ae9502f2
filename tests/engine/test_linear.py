"""Each weight format against a plain product with its own dequantised weight; embeddings out of a packed head."""

from __future__ import annotations

import pytest
import torch

from cluster.errors import UserError
from cluster.variants import Variant
from engine.linear import DenseLinear, Int8Linear, Nf4Linear, linear_of, on_device, pack
from kernels.int8_matmul import dequantize_int8, quantize_int8
from kernels.nf4_matmul import dequantize_nf4, quantize_nf4

WEIGHT = torch.randn(50, 128, generator=torch.Generator().manual_seed(0)) * 0.1
X = torch.randn(5, 128, generator=torch.Generator().manual_seed(1))
BIAS = torch.linspace(-1, 1, 50)


@pytest.mark.parametrize(
    ("variant", "kind", "weight", "tolerance"),
    [
        (Variant(name="v", dtype="fp32"), DenseLinear, WEIGHT, 1e-5),
        (Variant(name="v"), DenseLinear, WEIGHT.bfloat16().float(), 1e-5),
        # Activations are int8 too: an error of absmax / 254 in each.
        (Variant(name="v", method="int8"), Int8Linear, dequantize_int8(quantize_int8(WEIGHT)), 3e-2),
        (Variant(name="v", method="nf4"), Nf4Linear, dequantize_nf4(quantize_nf4(WEIGHT)), 1e-5),
    ],
)
def test_forward(variant: Variant, kind: type, weight: torch.Tensor, tolerance: float) -> None:
    packed = pack(WEIGHT, variant.method, variant.dtype)
    for bias in (None, BIAS):
        linear = linear_of(on_device(packed, "cpu"), bias, variant)
        assert isinstance(linear, kind)
        expected = X @ weight.T + (0 if bias is None else bias)
        torch.testing.assert_close(linear.forward(X), expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("method", ["none", "int8"])
def test_rows_of_a_packed_head_are_its_embedding(method: str) -> None:
    variant = Variant(name="v", method=method)  # type: ignore[arg-type]
    linear = linear_of(pack(WEIGHT, variant.method, variant.dtype), None, variant)
    assert isinstance(linear, DenseLinear | Int8Linear)
    table = WEIGHT.bfloat16().float() if method == "none" else dequantize_int8(quantize_int8(WEIGHT))
    ids = torch.tensor([0, 49, 16, 15, 16])
    assert torch.equal(linear.rows(ids), table[ids])


def test_what_is_not_run_is_refused_by_name() -> None:
    with pytest.raises(UserError, match="method 'fp8' is not run on a CPU; it runs none, int8, nf4, gptq, awq"):
        pack(WEIGHT, "fp8", "bf16")
    with pytest.raises(UserError, match="nf4 needs rows of a multiple of 64, this model has 100"):
        pack(WEIGHT[:, :100], "nf4", "bf16")
