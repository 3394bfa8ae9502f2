"""bitsandbytes' own tensors read back equal, and what we write bitsandbytes reads to the same weights."""

from __future__ import annotations

import json

import bitsandbytes
import pytest
import torch
from bitsandbytes.functional import QuantState, dequantize_4bit, quantize_4bit

from kernels.bitsandbytes_layout import NF4_STATE, pack_bnb_int8, pack_bnb_nf4, unpack_bnb_int8, unpack_bnb_nf4
from kernels.int8_matmul import dequantize_int8, quantize_int8
from kernels.nf4_matmul import dequantize_nf4, quantize_nf4


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("shape", [(96, 128), (17, 576), (3, 64)])
def test_what_bitsandbytes_packs_is_read(shape: tuple[int, int], nested: bool) -> None:
    packed, state = quantize_4bit(normal(*shape), blocksize=64, quant_type="nf4", compress_statistics=nested)
    tensors = {f"weight.{name}": tensor for name, tensor in state.as_dict(packed=True).items()}
    ours = dequantize_nf4(unpack_bnb_nf4({"weight": packed, **tensors}))
    torch.testing.assert_close(ours, dequantize_4bit(packed, state), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("nested", [False, True])
def test_what_we_pack_bitsandbytes_reads(nested: bool) -> None:
    weight = quantize_nf4(normal(96, 576), 64, nested)
    tensors = pack_bnb_nf4(weight)
    states = {name.removeprefix("weight."): tensor for name, tensor in tensors.items() if name != "weight"}
    state = QuantState.from_dict(states, device=torch.device("cpu"))
    theirs = dequantize_4bit(tensors["weight"], state)
    assert theirs.dtype == torch.bfloat16
    torch.testing.assert_close(theirs.float(), dequantize_nf4(weight), rtol=2**-8, atol=1e-6)
    assert json.loads(bytes(tensors[NF4_STATE].tolist()))["shape"] == [96, 576]


@pytest.mark.parametrize("nested", [False, True])
def test_nf4_comes_back_bit_for_bit(nested: bool) -> None:
    weight = quantize_nf4(normal(48, 192), 64, nested)
    again = unpack_bnb_nf4(pack_bnb_nf4(weight))
    assert torch.equal(again.qdata, weight.qdata)
    assert torch.equal(dequantize_nf4(again), dequantize_nf4(weight))


def test_eight_bits_are_those_of_its_linear() -> None:
    weight = normal(96, 128).half()
    linear = bitsandbytes.nn.Linear8bitLt(128, 96, bias=False, has_fp16_weights=False)
    linear.weight = bitsandbytes.nn.Int8Params(weight, requires_grad=False, has_fp16_weights=False)
    linear = linear.to("cpu")
    linear(normal(2, 128).half())
    read = unpack_bnb_int8(linear.state_dict())
    ours = quantize_int8(weight)
    assert (read.qdata.int() - ours.qdata.int()).abs().max() <= 1
    torch.testing.assert_close(dequantize_int8(read), weight.float(), atol=0.03, rtol=0)


def test_int8_comes_back() -> None:
    weight = quantize_int8(normal(40, 64))
    again = unpack_bnb_int8(pack_bnb_int8(weight))
    assert torch.equal(again.qdata, weight.qdata)
    torch.testing.assert_close(again.scale, weight.scale, rtol=1e-6, atol=0)


def test_what_does_not_fit_together_is_told() -> None:
    tensors = pack_bnb_nf4(quantize_nf4(normal(48, 192), 64))
    with pytest.raises(KeyError, match=r"weight\.absmax"):
        unpack_bnb_nf4({name: tensor for name, tensor in tensors.items() if name != "weight.absmax"})
    with pytest.raises(ValueError, match="do not hold 48 x 192 codes"):
        unpack_bnb_nf4({**tensors, "weight": tensors["weight"][1:]})
    with pytest.raises(ValueError, match="143 values of absmax for 144 blocks"):
        unpack_bnb_nf4({**tensors, "weight.absmax": tensors["weight.absmax"][1:]})
    with pytest.raises(ValueError, match="not that of NF4"):
        unpack_bnb_nf4({**tensors, "weight.quant_map": torch.linspace(-1, 1, 16)})
    int8 = pack_bnb_int8(quantize_int8(normal(40, 64)))
    with pytest.raises(ValueError, match="do not belong together"):
        unpack_bnb_int8({**int8, "SCB": int8["SCB"][1:]})
    with pytest.raises(ValueError, match="row-major"):
        unpack_bnb_int8({**int8, "weight_format": torch.tensor(2, dtype=torch.uint8)})
