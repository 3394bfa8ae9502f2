"""Arguments become variants: names as they are, folders by their config.json; mistakes are one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from batch_jobs.evaluate.candidates import find_candidates, reference_variant
from cluster.config import FleetConfig
from cluster.errors import UserError

NF4 = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}


def checkpoint(folder: Path, quantization: Any = None) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"quantization_config": quantization} if quantization else {}))
    (folder / "model.safetensors").write_bytes(b"")
    return folder


def test_the_reference_comes_first_and_the_others_in_order(config: FleetConfig) -> None:
    assert find_candidates(config, ["nf4", "bf16", "int8"]).names == ("bf16", "nf4", "int8")
    found = find_candidates(config, ["int8"])
    assert found.names == ("bf16", "int8")
    assert found.config.variants == config.variants
    assert found.folders == {}


def test_a_folder_is_a_variant_named_after_it(config: FleetConfig, tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "my model, v2", NF4)
    found = find_candidates(config, [str(folder), "int8"])
    assert found.names == ("bf16", "my-model-v2", "int8")
    assert found.folders == {"my-model-v2": folder}
    variant = found.config.variants["my-model-v2"]
    assert (variant.method, variant.source, variant.quality) == ("nf4", str(folder), None)
    (tmp_path / "link").symlink_to(folder)
    assert find_candidates(config, [str(tmp_path / "link")]).folders == {"link": folder}


def test_a_folder_that_the_configuration_has_is_that_variant(tiny: Path, tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "made")
    config = FleetConfig.of(
        {"model": {"source": str(tiny)}, "variants": {"bf16": {}, "pruned": {"source": str(folder)}}}
    )
    found = find_candidates(config, [str(tmp_path / "." / "made")])
    assert found.names == ("bf16", "pruned")
    assert found.folders == {"pruned": folder}
    assert found.config.variants == config.variants


@pytest.mark.parametrize(
    ("quantization", "method"),
    [
        (None, "none"),
        ({"quant_method": "gptq", "bits": 4, "group_size": 32}, "gptq"),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "int8"),
        (NF4, "nf4"),
    ],
)
def test_the_method_is_what_config_json_says(
    config: FleetConfig, tmp_path: Path, quantization: Any, method: str
) -> None:
    folder = checkpoint(tmp_path / "made", quantization)
    assert find_candidates(config, [str(folder)]).config.variants["made"].method == method


def test_the_reference_is_unquantised() -> None:
    config = FleetConfig.of(
        {"model": {"source": "x"}, "variants": {"b": {}, "a": {"dtype": "fp32"}, "q": {"method": "nf4"}}}
    )
    assert reference_variant(config).name == "b"
    with pytest.raises(UserError, match="nothing to compare with"):
        reference_variant(FleetConfig.of({"model": {"source": "x"}, "variants": {"q": {"method": "nf4"}}}))


def test_mistakes_are_one_line(config: FleetConfig, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    named = checkpoint(tmp_path / "int8")
    other = checkpoint(tmp_path / "other", {"quant_method": "hqq"})
    twice = checkpoint(tmp_path / "a" / "same"), checkpoint(tmp_path / "b" / "same")
    for arguments, error in (
        (["in8"], "in8: neither a variant of the configuration nor a folder; did you mean int8"),
        ([f"{tmp_path}/none"], "neither a variant"),
        ([f"{tmp_path}/empty"], r"empty: no checkpoint: it holds no \*.safetensors"),
        ([f"{tmp_path}/file"], "is a file"),
        (["int8", "nf4", "int8"], "int8: int8 is given twice"),
        ([str(folder) for folder in twice], "b/same: same is given twice"),
        ([str(named)], "the configuration has another variant int8"),
        ([str(other)], "quantization_config.quant_method 'hqq' is not supported; supported: gptq"),
    ):
        with pytest.raises(UserError, match=error) as caught:
            find_candidates(config, arguments)
        assert "\n" not in str(caught.value)
