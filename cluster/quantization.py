"""What a checkpoint's config.json says of its quantisation, read and checked; it opens no tensor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from cluster.errors import UserError

CheckpointMethod = Literal["gptq", "awq", "nf4", "int8", "fp8"]
GPTQ_BITS = (2, 3, 4, 8)
GPTQ_FORMATS = ("gptq", "gptq_v2")


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantization:
    """One way for all matrices of the blocks; those that a checkpoint left out (modules_to_not_convert) are dense."""

    method: CheckpointMethod
    bits: int
    group_size: int | None = None
    """Columns that share a scale, of gptq and awq; None: all of a row."""
    act_order: bool = False
    """gptq: a group's columns are no neighbours; desc_act alone does not say so of static groups or whole rows."""
    zeros_less_one: bool = False
    """gptq: the first format stores zero - 1."""


def quantization_of(config: Mapping[str, Any], where: str) -> Quantization | None:
    """None for a model that is not quantised; UserError for what is not loaded, `where` being config.json's path."""
    settings = config.get("quantization_config")
    if settings is None:
        return None
    if not isinstance(settings, Mapping):
        raise UserError(f"{where}: quantization_config must be an object, not {settings!r}")
    match settings.get("quant_method"):
        case "gptq":
            return _gptq(settings, where)
        case "awq":
            return _awq(settings, where)
        case "bitsandbytes":
            return _bitsandbytes(settings, where)
        case "compressed-tensors":
            return _compressed_tensors(settings, where)
        case method:
            raise UserError(
                f"{where}: quantization_config.quant_method {method!r} is not supported;"
                " supported: gptq, awq, bitsandbytes (nf4, int8), compressed-tensors (fp8)"
            )


def _gptq(settings: Mapping[str, Any], where: str) -> Quantization:
    _refuse_unless(settings, where, "bits", GPTQ_BITS)
    for key in ("lm_head", "dynamic"):
        if settings.get(key):
            raise UserError(f"{where}: quantization_config.{key} {settings[key]!r} is not supported; blocks alone are")
    layout = settings.get("checkpoint_format") or settings.get("format") or "gptq"
    if layout not in GPTQ_FORMATS:
        raise UserError(
            f"{where}: quantization_config.checkpoint_format {layout!r} is not supported;"
            f" supported: {', '.join(GPTQ_FORMATS)}"
        )
    group_size = _group_size(settings, where)
    return Quantization(
        method="gptq",
        bits=settings["bits"],
        group_size=group_size,
        act_order=bool(settings.get("desc_act")) and not settings.get("static_groups") and group_size is not None,
        zeros_less_one=layout == "gptq",
    )


def _awq(settings: Mapping[str, Any], where: str) -> Quantization:
    """AutoAWQ's other versions (gemv, gemv_fast, marlin) put the same words elsewhere."""
    _refuse_unless(settings, where, "bits", (4,))
    version = str(settings.get("version") or "gemm").lower()
    if version != "gemm":
        raise UserError(f"{where}: quantization_config.version {version!r} is not supported; gemm is")
    return Quantization(method="awq", bits=4, group_size=_group_size(settings, where))


def _bitsandbytes(settings: Mapping[str, Any], where: str) -> Quantization:
    if settings.get("load_in_8bit"):
        return Quantization(method="int8", bits=8)
    kind = settings.get("bnb_4bit_quant_type", "fp4")  # bitsandbytes' own default
    if not settings.get("load_in_4bit") or kind != "nf4":
        raise UserError(
            f"{where}: quantization_config: bitsandbytes with bnb_4bit_quant_type {kind!r} is not supported;"
            " nf4 and load_in_8bit are"
        )
    return Quantization(method="nf4", bits=4)


def _compressed_tensors(settings: Mapping[str, Any], where: str) -> Quantization:
    weights = [_mapping(_mapping(group).get("weights")) for group in _mapping(settings.get("config_groups")).values()]
    expected = {"num_bits": 8, "type": "float", "strategy": "channel"}
    if (
        settings.get("format") != "float-quantized"
        or not weights
        or any(each.get(key) != value for each in weights for key, value in expected.items())
    ):
        raise UserError(
            f"{where}: quantization_config: of compressed-tensors only format float-quantized with 8 bits, type float"
            " and strategy channel is supported"
        )
    return Quantization(method="fp8", bits=8)


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _refuse_unless(settings: Mapping[str, Any], where: str, key: str, allowed: tuple[int, ...]) -> None:
    if settings.get(key) not in allowed:
        raise UserError(
            f"{where}: quantization_config.{key} {settings.get(key)!r} is not supported for"
            f" {settings.get('quant_method')}; supported: {', '.join(map(str, allowed))}"
        )


def _group_size(settings: Mapping[str, Any], where: str) -> int | None:
    size = settings.get("group_size", -1)
    if not isinstance(size, int) or isinstance(size, bool) or (size < 1 and size != -1):
        raise UserError(f"{where}: quantization_config.group_size must be a positive integer or -1, not {size!r}")
    return None if size == -1 else size
