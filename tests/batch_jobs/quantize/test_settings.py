"""What may be asked for: group sizes that divide this model, and every refusal names the value, the place, the mend."""

from pathlib import Path
from typing import Any

import pytest

from batch_jobs.quantize.quantization_config import quantization_config
from batch_jobs.quantize.settings import QuantizeSettings
from cluster.errors import UserError
from cluster.model_shape import ModelShape


@pytest.fixture(scope="module")
def shape(embedded: Path) -> ModelShape:
    return ModelShape.from_hf_config(embedded)


def test_the_largest_group_that_divides_is_taken(shape: ModelShape) -> None:
    assert QuantizeSettings(method="gptq").fitted(shape).group_size == 64
    assert QuantizeSettings(method="gptq", group_size="row").fitted(shape).columns_a_group is None


def test_a_group_that_does_not_divide_is_refused_by_name(shape: ModelShape) -> None:
    with pytest.raises(UserError) as refusal:
        QuantizeSettings(method="gptq", group_size=128).fitted(shape)
    for word in ("--group-size 128", "576 columns", "self_attn.q_proj", "--group-size 64"):
        assert word in str(refusal.value)


@pytest.mark.parametrize(
    ("asked", "error"),
    [
        ({"method": "gptq", "bits": 5}, "--bits 5: must be one of 2, 3, 4, 8"),
        ({"method": "nf4", "bits": 8}, "--bits 8: nf4 has a width of its own"),
        ({"method": "gptq", "group_size": 48}, "--group-size 48"),
        ({"method": "rtn", "act_order": True}, "--act-order: belongs to --method gptq"),
        ({"method": "gptq", "static_groups": True}, "--static-groups"),
        ({"method": "gptq", "keep_salient": 0.01}, "--keep-salient: belongs to --method awq"),
        ({"method": "gptq", "damping": 0.0}, "--damping 0.0"),
        ({"method": "awq", "symmetric": False, "keep_salient": 1.5}, "--keep-salient 1.5"),
    ],
)
def test_refusals(asked: dict[str, Any], error: str) -> None:
    with pytest.raises(UserError, match=error):
        QuantizeSettings(**asked)


def test_layouts_and_their_configurations() -> None:
    asked = {"group_size": 64}
    gptq = quantization_config(QuantizeSettings(method="gptq", bits=3, act_order=True, **asked))
    assert gptq is not None
    expected = {"quant_method": "gptq", "checkpoint_format": "gptq", "bits": 3, "group_size": 64, "sym": True}
    assert expected.items() | {("desc_act", True), ("lm_head", False)} <= {
        (key, value) for key, value in gptq.items() if not isinstance(value, dict)
    }
    static = quantization_config(QuantizeSettings(method="gptq", act_order=True, static_groups=True, **asked))
    assert static is not None
    assert not static["desc_act"]  # the groups are neighbouring columns
    awq = quantization_config(QuantizeSettings(method="awq", symmetric=False, group_size="row"))
    assert awq is not None
    assert (awq["quant_method"], awq["version"], awq["group_size"], awq["zero_point"]) == ("awq", "gemm", -1, True)
    assert QuantizeSettings(method="awq", bits=3, symmetric=False, **asked).layout == "gptq"
    nf4 = quantization_config(QuantizeSettings(method="nf4"))
    assert nf4 is not None
    assert nf4["load_in_4bit"]
    assert nf4["bnb_4bit_use_double_quant"]
    fp8 = quantization_config(QuantizeSettings(method="fp8"))
    assert fp8 is not None
    assert fp8["config_groups"]["group_0"]["weights"]["strategy"] == "channel"
    assert quantization_config(QuantizeSettings(method="awq", symmetric=False, keep_salient=0.01)) is None


def test_another_setting_or_text_is_another_key() -> None:
    settings = QuantizeSettings(method="gptq", group_size=64)
    keys = {
        settings.key("model", "text"),
        settings.key("model", "other text"),
        settings.key("other model", "text"),
        QuantizeSettings(method="gptq", group_size=64, damping=0.02).key("model", "text"),
    }
    assert len(keys) == 4
    assert settings.key("model", "text") == QuantizeSettings(method="gptq", group_size=64).key("model", "text")
