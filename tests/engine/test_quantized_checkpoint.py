"""Quantised checkpoints on the CPU engine: the logits of their dequantised weights, and what is refused, by name."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

from cluster.engine_spec import EngineSpec
from cluster.errors import UserError
from cluster.model_shape import ModelShape
from cluster.request import GenerationRequest, SamplingParams
from cluster.variants import Method, Variant
from engine.linear import DenseLinear, Int4Linear
from engine.runner import Runner
from engine.sequence import ScheduledChunk, Sequence
from kernels.bitsandbytes_layout import pack_bnb_int8, pack_bnb_nf4
from kernels.checkpoint_layouts import IntegerWeight, pack_awq, pack_gptq
from kernels.int8_matmul import dequantize_int8, quantize_int8
from kernels.nf4_matmul import dequantize_nf4, quantize_nf4

GROUP = 32
TOKENS = list(range(3, 40))
Packed = tuple[dict[str, Tensor], Tensor]
"""The tensors of a matrix after its name, and its weights dequantised."""


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Qwen2, which has biases, in fp32."""
    torch.manual_seed(0)
    config = transformers.Qwen2Config(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        vocab_size=64,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        tie_word_embeddings=False,
        eos_token_id=0,
        use_sliding_window=False,
    )
    model = transformers.Qwen2ForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.1) if parameter.dim() == 1 else parameter.normal_(0, 0.15)
    folder = tmp_path_factory.mktemp("plain")
    model.save_pretrained(folder)
    return folder


def integers(weight: Tensor, bits: int, *, symmetric: bool, act_order: bool) -> IntegerWeight:
    """Rounded to nearest; with act-order, groups of columns drawn by the number of columns."""
    columns = weight.shape[1]
    group_of = torch.arange(columns) // GROUP
    if act_order:
        group_of = group_of[torch.randperm(columns, generator=torch.Generator().manual_seed(columns))]
    most = 2**bits - 1
    scales, zeros = torch.empty(len(weight), columns // GROUP), torch.empty(len(weight), columns // GROUP)
    for group in range(columns // GROUP):
        part = weight[:, group_of == group]
        low, high = part.amin(1).clamp(max=0), part.amax(1).clamp(min=0)
        scales[:, group] = (2 * part.abs().amax(1) if symmetric else high - low) / most
        zeros[:, group] = 2 ** (bits - 1) if symmetric else (-low / scales[:, group]).round().clamp(1, most)
    scales = scales.half()
    codes = (weight / scales.float()[:, group_of] + zeros[:, group_of]).round().clamp(0, most)
    return IntegerWeight(
        codes=codes.to(torch.uint8), scales=scales, zeros=zeros.to(torch.uint8), group_of=group_of.int(), bits=bits
    )


def gptq(weight: Tensor, *, bits: int = 4, symmetric: bool = True, act_order: bool = False) -> Packed:
    made = integers(weight, bits, symmetric=symmetric, act_order=act_order)
    return pack_gptq(made), made.dequantize()


def awq(weight: Tensor) -> Packed:
    made = integers(weight, 4, symmetric=False, act_order=False)
    return pack_awq(made), made.dequantize()


def nf4(weight: Tensor, *, double_quant: bool = True) -> Packed:
    made = quantize_nf4(weight, 64, double_quant)
    return pack_bnb_nf4(made), dequantize_nf4(made)


def int8(weight: Tensor) -> Packed:
    made = quantize_int8(weight)
    return pack_bnb_int8(made), dequantize_int8(made)


GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "checkpoint_format": "gptq"}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": GROUP, "zero_point": True, "version": "gemm"}
NF4 = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
INT8 = {"quant_method": "bitsandbytes", "load_in_8bit": True}

CHECKPOINTS = {
    "gptq-sym": ("gptq", GPTQ | {"sym": True}, gptq),
    "gptq-asym": ("gptq", GPTQ | {"sym": False}, lambda weight: gptq(weight, symmetric=False)),
    "gptq-act-order": ("gptq", GPTQ | {"desc_act": True}, lambda weight: gptq(weight, act_order=True)),
    "gptq-int3": ("gptq", GPTQ | {"bits": 3}, lambda weight: gptq(weight, bits=3, symmetric=False)),
    "gptq-int8": ("gptq", GPTQ | {"bits": 8}, lambda weight: gptq(weight, bits=8)),
    "awq": ("awq", AWQ, awq),
    "nf4": ("nf4", NF4, lambda weight: nf4(weight, double_quant=False)),
    "nf4-double": ("nf4", NF4, nf4),
    "int8": ("int8", INT8, int8),
}


def write(plain: Path, folder: Path, quantization: dict[str, object] | None, quantised: object) -> dict[str, Tensor]:
    """The same model with its blocks' matrices quantised; the dense tensors it stands for."""
    tensors, dense = load_file(plain / "model.safetensors"), {}
    stored = {}
    for name, tensor in tensors.items():
        if "proj.weight" not in name:
            stored[name] = dense[name] = tensor
            continue
        parts, dense[name] = quantised(tensor)  # type: ignore[operator]
        stored |= {f"{name.removesuffix('.weight')}.{part}": part_tensor for part, part_tensor in parts.items()}
    save(folder, plain, stored, quantization)
    return dense


def save(folder: Path, plain: Path, tensors: dict[str, Tensor], quantization: dict[str, object] | None) -> None:
    folder.mkdir(exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")
    config = json.loads((plain / "config.json").read_text())
    if quantization is not None:
        config["quantization_config"] = quantization
    (folder / "config.json").write_text(json.dumps(config))


def runner(plain: Path, variant: Variant) -> Runner:
    return Runner(
        EngineSpec(
            replica_id="test",
            checkpoint=str(plain),
            variant=replace(variant, dtype="fp32"),
            kv_capacity_tokens=128,
            kv_dtype="fp32",
            max_context=64,
        )
    )


def logits(runner: Runner) -> Tensor:
    """[tokens, vocab] of one prompt."""
    request = GenerationRequest(request_id="a", prompt_token_ids=TOKENS, sampling=SamplingParams())
    sequence = Sequence(
        request=request, token_ids=TOKENS, num_prompt_tokens=len(TOKENS), seed=0, arrival=0, block_table=[0, 1, 2]
    )
    return torch.cat(list(runner.prompt_logits(ScheduledChunk.of(sequence, len(TOKENS)), 0)))


@pytest.fixture(scope="module")
def plain_logits(plain: Path) -> Tensor:
    return logits(runner(plain, Variant(name="plain")))


@pytest.mark.parametrize("kind", CHECKPOINTS)
def test_logits_are_those_of_the_dequantised_weights(
    plain: Path, plain_logits: Tensor, tmp_path: Path, kind: str
) -> None:
    method, quantization, quantised = CHECKPOINTS[kind]
    dense = write(plain, tmp_path / kind, quantization, quantised)
    save(tmp_path / "dense", plain, dense, None)
    # LLM.int8() with every activation apart: what is left is the weights' own rounding.
    variant = Variant(name=kind, method=method, source=str(tmp_path / kind), outlier_threshold=1e-9)
    found = logits(runner(plain, variant))
    expected = logits(runner(plain, Variant(name="dense", source=str(tmp_path / "dense"))))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert (found - plain_logits).abs().max() > 1e-3


@pytest.mark.parametrize("kind", ["gptq-act-order", "nf4-double"])
def test_packed_weights_come_back_from_the_cache(
    plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setenv("QUANTFLEET_CACHE", str(tmp_path / "cache"))
    method, quantization, quantised = CHECKPOINTS[kind]
    write(plain, tmp_path / kind, quantization, quantised)
    variant = Variant(name=kind, method=method, source=str(tmp_path / kind))
    first = logits(runner(plain, variant))
    assert len(list((tmp_path / "cache" / "packed").glob("*.safetensors"))) == 1
    assert torch.equal(logits(runner(plain, variant)), first)


def test_bytes_are_those_of_the_formula(plain: Path, tmp_path: Path) -> None:
    for kind in ("gptq-asym", "gptq-act-order", "gptq-int8", "awq"):
        method, quantization, quantised = CHECKPOINTS[kind]
        write(plain, tmp_path / kind, quantization, quantised)
        found = runner(plain, Variant(name=kind, method=method, source=str(tmp_path / kind)))
        formula = Variant(
            name=kind,
            method=method,
            dtype="fp32",
            bits=int(quantization["bits"]),
            group_size=GROUP,
            act_order=kind == "gptq-act-order",
        )
        assert found.weight_bytes == formula.resident_bytes(ModelShape.from_hf_config(plain), "cpu"), kind


def test_a_matrix_left_dense_stays_dense(plain: Path, tmp_path: Path) -> None:
    folder = tmp_path / "partly"
    write(plain, folder, GPTQ | {"modules_to_not_convert": ["o_proj"]}, gptq)
    stored = load_file(folder / "model.safetensors")
    for name, tensor in load_file(plain / "model.safetensors").items():
        if "o_proj" in name:
            stem = name.removesuffix(".weight")
            stored = {key: value for key, value in stored.items() if not key.startswith(stem)} | {name: tensor}
    save(folder, plain, stored, GPTQ)
    loaded = runner(plain, Variant(name="partly", method="gptq", source=str(folder)))
    (layer, _) = loaded._decoder._layers
    assert isinstance(layer.o, DenseLinear)
    assert isinstance(layer.down, Int4Linear)


def damaged(plain: Path, folder: Path, change: dict[str, Tensor | None]) -> None:
    write(plain, folder, GPTQ, gptq)
    stored = load_file(folder / "model.safetensors")
    stored |= {name: tensor for name, tensor in change.items() if tensor is not None}
    save(folder, plain, {name: stored[name] for name in stored if change.get(name, stored) is not None}, GPTQ)


Q_PROJ = "model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({f"{Q_PROJ}.qweight": None, f"{Q_PROJ}.g_idx": None}, rf"tensor {Q_PROJ}.qweight is missing"),
        ({f"{Q_PROJ}.scales": torch.ones(3, 64)}, r"q_proj.scales is \[3, 64\], config.json asks for \[2, 64\]"),
        ({f"{Q_PROJ}.qweight": torch.zeros(8, 64)}, "q_proj.qweight is float32; int32 is expected"),
        ({f"{Q_PROJ}.scales": torch.full((2, 64), torch.nan)}, "q_proj.scales has values that are no numbers"),
        ({f"{Q_PROJ}.g_idx": torch.full((64,), 2)}, "q_proj.g_idx names groups up to 2, there are 2"),
        (
            {f"{Q_PROJ}.g_idx": torch.tensor([0] * 40 + [1] * 24)},
            "q_proj.g_idx does not give each of 2 groups 32 columns",
        ),
        (
            {f"{Q_PROJ}.g_idx": torch.tensor([0, 1] * 32).int()},
            "q_proj.*k_proj.*v_proj.*act-order differs",
        ),
    ],
    ids=["missing", "shape", "dtype", "nan", "group", "groups", "order"],
)
def test_a_damaged_checkpoint_is_refused_by_tensor(
    plain: Path, tmp_path: Path, change: dict[str, Tensor | None], message: str
) -> None:
    damaged(plain, tmp_path, change)
    with pytest.raises(UserError, match=message) as refused:
        runner(plain, Variant(name="gptq", method="gptq", source=str(tmp_path)))
    assert "\n" not in str(refused.value)


def test_bitsandbytes_tensors_of_another_storage_are_refused(plain: Path, tmp_path: Path) -> None:
    write(plain, tmp_path, NF4, nf4)
    stored = load_file(tmp_path / "model.safetensors")
    stored[f"{Q_PROJ}.weight"] = stored[f"{Q_PROJ}.weight"].int()
    save(tmp_path, plain, stored, NF4)
    with pytest.raises(UserError, match=r"q_proj\.weight is int32; uint8 is expected"):
        runner(plain, Variant(name="nf4", method="nf4", source=str(tmp_path)))


@pytest.mark.parametrize(
    "index", ["{", "{}", '{"weight_map": []}', '{"weight_map": {"model.norm.weight": "../plain/model.safetensors"}}']
)
def test_an_index_that_is_none_or_leads_elsewhere_is_refused(plain: Path, tmp_path: Path, index: str) -> None:
    write(plain, tmp_path, GPTQ, gptq)
    (tmp_path / "model.safetensors.index.json").write_text(index)
    with pytest.raises(UserError, match="not an index of safetensors"):
        runner(plain, Variant(name="gptq", method="gptq", source=str(tmp_path)))


def test_groups_that_no_kernel_takes_are_told_with_their_matrices(plain: Path, tmp_path: Path) -> None:
    def in_pairs(weight: Tensor) -> Packed:
        pairs = torch.arange(weight.shape[1]) // 2
        made = IntegerWeight(
            codes=torch.zeros_like(weight, dtype=torch.uint8),
            scales=torch.ones(len(weight), weight.shape[1] // 2).half(),
            zeros=torch.full((len(weight), weight.shape[1] // 2), 8, dtype=torch.uint8),
            group_of=pairs.int(),
            bits=4,
        )
        return pack_gptq(made), weight

    write(plain, tmp_path, GPTQ | {"group_size": 2}, in_pairs)
    with pytest.raises(UserError, match=r"q_proj.*multiple of 4; quantise with another group size"):
        runner(plain, Variant(name="gptq", method="gptq", source=str(tmp_path)))


def test_a_truncated_file_is_refused(plain: Path, tmp_path: Path) -> None:
    write(plain, tmp_path, GPTQ, gptq)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"model\.safetensors: not a whole safetensors file"):
        runner(plain, Variant(name="gptq", method="gptq", source=str(tmp_path)))


@pytest.mark.parametrize(
    ("method", "quantization", "message"),
    [
        ("gptq", GPTQ | {"group_size": 48}, "group_size 48 does not divide the 64 columns of .*q_proj"),
        ("gptq", GPTQ | {"bits": 5}, "quantization_config.bits 5 is not supported for gptq; supported: 2, 3, 4, 8"),
        ("gptq", GPTQ | {"checkpoint_format": "marlin"}, "checkpoint_format 'marlin' is not supported"),
        ("awq", AWQ | {"version": "gemv"}, "version 'gemv' is not supported; gemm is"),
        ("nf4", NF4 | {"bnb_4bit_quant_type": "fp4"}, "bnb_4bit_quant_type 'fp4' is not supported"),
        ("gptq", {"quant_method": "hqq"}, "quant_method 'hqq' is not supported; supported: gptq, awq"),
        ("awq", GPTQ, "its model is quantised by gptq, and the variant's method is awq"),
        ("none", GPTQ, "its model is quantised by gptq, and the variant's method is none"),
        ("gptq", None, "its model is not quantised, and the variant's method is gptq"),
    ],
)
def test_what_config_json_says_and_is_not_loaded(
    plain: Path, tmp_path: Path, method: Method, quantization: dict[str, object] | None, message: str
) -> None:
    write(plain, tmp_path, quantization, gptq)
    with pytest.raises(UserError, match=message):
        runner(plain, Variant(name="a", method=method, source=str(tmp_path)))
