"""`quantization_config` of config.json, as the tools that made each format popular write it; it knows no tensors."""

from __future__ import annotations

from typing import Any

from batch_jobs.quantize.settings import QuantizeSettings

LEFT_DENSE = ["lm_head"]


def quantization_config(settings: QuantizeSettings) -> dict[str, Any] | None:
    """None for a dense checkpoint."""
    match settings.layout:
        case "gptq":
            return _gptq(settings)
        case "awq":
            return {
                "quant_method": "awq",
                "bits": settings.bits,
                "group_size": settings.columns_a_group or -1,
                "zero_point": True,
                "version": "gemm",
                "modules_to_not_convert": None,
            }
        case "bitsandbytes":
            return _bitsandbytes(settings)
        case "compressed-tensors":
            return _compressed_tensors()
        case "dense":
            return None


def _gptq(settings: QuantizeSettings) -> dict[str, Any]:
    """AutoGPTQ's fields; rounding and AWQ of other widths than 4 bits are integers of the same layout."""
    return {
        "quant_method": "gptq",
        "checkpoint_format": "gptq",
        "bits": settings.bits,
        "group_size": settings.columns_a_group or -1,
        "sym": settings.symmetric,
        # Static groups are neighbouring columns whatever the order was, so loaders need no permutation.
        "desc_act": settings.act_order and not settings.static_groups,
        "static_groups": settings.static_groups,
        "damp_percent": settings.damping,
        "true_sequential": settings.method == "gptq",
        "lm_head": False,
        "meta": {"quantizer": ["quantfleet"], "method": settings.method},
    }


def _bitsandbytes(settings: QuantizeSettings) -> dict[str, Any]:
    """transformers' own words for it, with the head named that it leaves out by itself."""
    import torch
    from transformers import BitsAndBytesConfig

    if settings.method == "int8":
        config = BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=LEFT_DENSE)
    else:
        config = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=settings.double_quant,
            bnb_4bit_compute_dtype=torch.bfloat16,
            llm_int8_skip_modules=LEFT_DENSE,
        )
    written: dict[str, Any] = config.to_dict()
    return written


def _compressed_tensors() -> dict[str, Any]:
    """llm-compressor's FP8_DYNAMIC: weights by channel, activations by token as they come."""
    common = {"num_bits": 8, "type": "float", "symmetric": True, "group_size": None, "block_structure": None}
    common |= {"actorder": None, "observer_kwargs": {}}
    return {
        "quant_method": "compressed-tensors",
        "format": "float-quantized",
        "quantization_status": "compressed",
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": {**common, "strategy": "channel", "dynamic": False, "observer": "minmax"},
                "input_activations": {**common, "strategy": "token", "dynamic": True, "observer": None},
                "output_activations": None,
            }
        },
        "ignore": LEFT_DENSE,
        "kv_cache_scheme": None,
        "global_compression_ratio": None,
    }
