"""quantization_config as the tools write it, and a variant's own checkpoint in fleet.yaml."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cluster.config import FleetConfig
from cluster.errors import UserError
from cluster.model_config import model_config
from cluster.model_shape import ModelShape
from cluster.quantization import Quantization, quantization_of

GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 64, "desc_act": True, "sym": True}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True, "version": "GEMM"}
FP8 = {
    "quant_method": "compressed-tensors",
    "format": "float-quantized",
    "config_groups": {"group_0": {"weights": {"num_bits": 8, "type": "float", "strategy": "channel"}}},
}


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (GPTQ, Quantization(method="gptq", bits=4, group_size=64, act_order=True, zeros_less_one=True)),
        (
            {"quant_method": "gptq", "bits": 3, "group_size": -1, "checkpoint_format": "gptq_v2"},
            Quantization(method="gptq", bits=3),
        ),
        (GPTQ | {"static_groups": True}, Quantization(method="gptq", bits=4, group_size=64, zeros_less_one=True)),
        (AWQ, Quantization(method="awq", bits=4, group_size=128)),
        (
            {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
            Quantization(method="nf4", bits=4),
        ),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, Quantization(method="int8", bits=8)),
        (FP8, Quantization(method="fp8", bits=8)),
    ],
)
def test_what_the_tools_write_is_read(settings: dict[str, Any], expected: Quantization) -> None:
    assert quantization_of({"quantization_config": settings}, "config.json") == expected


def test_a_plain_model_has_none() -> None:
    assert quantization_of({}, "config.json") is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("4 bits", "quantization_config must be an object"),
        ({"quant_method": "aqlm"}, "quant_method 'aqlm' is not supported; supported: gptq, awq, bitsandbytes"),
        (GPTQ | {"group_size": 0}, "group_size must be a positive integer or -1, not 0"),
        (GPTQ | {"bits": True}, "bits True is not supported"),
        (GPTQ | {"lm_head": True}, "lm_head True is not supported; blocks alone are"),
        (GPTQ | {"format": "marlin"}, "checkpoint_format 'marlin' is not supported"),
        (FP8 | {"config_groups": [{}]}, "only format float-quantized with 8 bits"),
        (AWQ | {"bits": 8}, "bits 8 is not supported for awq; supported: 4"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bnb_4bit_quant_type 'fp4' is not supported"),
        (FP8 | {"format": "pack-quantized"}, "only format float-quantized with 8 bits"),
    ],
)
def test_what_is_not_loaded_is_named(settings: object, message: str) -> None:
    with pytest.raises(UserError, match=message) as refused:
        quantization_of({"quantization_config": settings}, "/models/a/config.json")
    assert str(refused.value).startswith("/models/a/config.json: ")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A GPTQ checkpoint's config.json."""
    path = tmp_path / "smollm2-gptq"
    path.mkdir()
    config = model_config("embedded:smollm2-135m") | {"quantization_config": GPTQ}
    (path / "config.json").write_text(json.dumps(config))
    return path


def fleet(variant: dict[str, Any]) -> FleetConfig:
    return FleetConfig.of({"model": {"source": "embedded:smollm2-135m"}, "variants": {"bf16": {}, "g": variant}})


def test_the_checkpoint_tells_bits_and_groups(folder: Path) -> None:
    variant = fleet({"method": "gptq", "source": str(folder)}).variants["g"]
    assert (variant.bits, variant.group_size, variant.act_order) == (4, 64, True)
    shape = ModelShape.from_hf_config(model_config("embedded:smollm2-135m"))
    linears = 30 * (576 * 960 + 576 * 576 + 576 * 3072 + 1536 * 576)
    orders = 30 * 8 * (3 * 576 + 1536)
    expected = linears // 2 + 8 * linears // 64 + orders + 4 * shape.vector_params + 2 * shape.embedding_params
    assert variant.resident_bytes(shape, "cpu") == expected


def test_a_relative_source_becomes_a_whole_path(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent)
    assert fleet({"method": "gptq", "source": "smollm2-gptq"}).variants["g"].source == str(folder)


@pytest.mark.parametrize(
    ("variant", "message"),
    [
        ({"method": "awq"}, "variants.g.method: awq, but .*smollm2-gptq is gptq; say `method: gptq`"),
        ({"method": "none"}, "variants.g.method: none, but .*smollm2-gptq is gptq; say `method: gptq`"),
    ],
)
def test_a_method_at_odds_with_its_checkpoint_is_refused(folder: Path, variant: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        _ = fleet(variant | {"source": str(folder)}).variants


def test_an_unquantised_source_is_for_methods_that_quantise(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps(model_config("embedded:smollm2-135m")))
    assert fleet({"method": "int8", "source": str(folder)}).variants["g"].source == str(folder)
    with pytest.raises(UserError, match=r"method: gptq, but .* is not quantised; say `method: none`"):
        _ = fleet({"method": "gptq", "source": str(folder)}).variants


def test_a_folder_that_is_not_there_is_named_by_its_key() -> None:
    with pytest.raises(UserError, match=r"variants\.g\.source '/nowhere/at/all': no such folder"):
        _ = fleet({"method": "gptq", "source": "/nowhere/at/all"}).variants
