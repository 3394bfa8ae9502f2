"""ModelShape: the dimensions of a decoder, its parameter counts and the KV bytes of a token; it holds no weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.errors import UserError

SUPPORTED_ARCHITECTURES = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")
SUPPORTED_ROPE_TYPES = ("default", "linear", "llama3")
_SUPPORTED = f"supported are {', '.join(SUPPORTED_ARCHITECTURES)} (SmolLM2 is a LlamaForCausalLM)"


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearShape:
    """One matrix product of a decoder block: y = x W^T with W of [rows, columns]."""

    name: str
    rows: int
    columns: int

    @property
    def params(self) -> int:
        return self.rows * self.columns


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """A plain MHA, GQA or MQA decoder: every layer attends to every earlier token and keeps K and V of all of them."""

    name: str
    architecture: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    vocab: int
    tied_embeddings: bool
    max_positions: int

    @classmethod
    def from_hf_config(cls, config: Mapping[str, Any] | Path, max_context: int | None = None) -> ModelShape:
        """Reads a Hugging Face config.json (or its folder); refuses by name what the memory formula would get wrong.

        `max_context` is the longest sequence that will be run (None: the model's own limit); a sliding window no
        shorter than that never acts, so it is not refused.
        """
        if isinstance(config, Path):
            return cls.from_hf_config(read_config(config), max_context)
        _refuse_unsupported(config, max_context)
        hidden, heads = _count(config, "hidden_size"), _count(config, "num_attention_heads")
        return cls(
            name=str(config.get("_name_or_path") or config.get("model_type") or "model"),
            architecture=str(config["architectures"][0]),
            layers=_count(config, "num_hidden_layers"),
            hidden=hidden,
            heads=heads,
            kv_heads=_count(config, "num_key_value_heads", default=heads),
            head_dim=_count(config, "head_dim", default=hidden // heads),
            ffn=_count(config, "intermediate_size"),
            vocab=_count(config, "vocab_size"),
            # A config leaves out what equals its class's default; PretrainedConfig's is True, but of the four classes
            # here each overrides it with False.
            tied_embeddings=bool(config.get("tie_word_embeddings", False)),
            max_positions=_count(config, "max_position_embeddings"),
        )

    @property
    def qkv_bias(self) -> bool:
        return self.architecture == "Qwen2ForCausalLM"

    @property
    def qk_norm(self) -> bool:
        return self.architecture == "Qwen3ForCausalLM"

    @property
    def query_width(self) -> int:
        return self.heads * self.head_dim

    @property
    def kv_width(self) -> int:
        return self.kv_heads * self.head_dim

    @property
    def block_linears(self) -> tuple[LinearShape, ...]:
        """The four products of one block, merged as the engine runs them."""
        return (
            LinearShape(name="qkv", rows=self.query_width + 2 * self.kv_width, columns=self.hidden),
            LinearShape(name="o", rows=self.hidden, columns=self.query_width),
            LinearShape(name="gate_up", rows=2 * self.ffn, columns=self.hidden),
            LinearShape(name="down", rows=self.hidden, columns=self.ffn),
        )

    @property
    def block_params(self) -> int:
        """Weights of the linears of all blocks: what a variant quantises."""
        return self.layers * sum(linear.params for linear in self.block_linears)

    @property
    def vector_params(self) -> int:
        """Norm weights and biases: what every variant keeps in fp32."""
        block = 2 * self.hidden
        block += self.query_width + 2 * self.kv_width if self.qkv_bias else 0
        block += 2 * self.head_dim if self.qk_norm else 0
        return self.layers * block + self.hidden

    @property
    def embedding_params(self) -> int:
        """Of one table; a model with tied embeddings has one, any other has this one and an equally large head."""
        return self.vocab * self.hidden

    @property
    def params(self) -> int:
        tables = 1 if self.tied_embeddings else 2
        return self.block_params + self.vector_params + tables * self.embedding_params

    def kv_bytes_per_token(self, itemsize: int) -> int:
        """2 (K and V) x layers x kv_heads x head_dim x bytes per element."""
        return 2 * self.layers * self.kv_width * itemsize


def read_config(path: Path) -> dict[str, Any]:
    """config.json as it stands, named after its folder where it names no model itself."""
    file = path / "config.json" if path.is_dir() else path
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(
            f"{file}: missing; a model folder holds config.json, *.safetensors and tokenizer.json"
        ) from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: not valid JSON ({error})") from error
    if not isinstance(config, dict):
        raise UserError(f"{file}: a JSON object is expected")
    return {"_name_or_path": file.parent.name, **config}


def rope_parameters(config: Mapping[str, Any]) -> dict[str, Any]:
    """Rope type, theta and scaling in one mapping; transformers 5 writes rope_parameters, 4 wrote rope_scaling."""
    found = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    found["rope_type"] = found.get("rope_type", found.get("type", "default"))
    found["rope_theta"] = float(found.get("rope_theta", config.get("rope_theta", 10000.0)))
    return found


def _refuse_unsupported(config: Mapping[str, Any], max_context: int | None) -> None:
    name = config.get("_name_or_path") or config.get("model_type") or "model"
    architectures = config.get("architectures") or ["(none named)"]
    if architectures[0] not in SUPPORTED_ARCHITECTURES:
        raise UserError(f"{name}: architecture {architectures[0]} is not supported; {_SUPPORTED}")
    rope = rope_parameters(config)
    if rope["rope_type"] not in SUPPORTED_ROPE_TYPES:
        raise UserError(
            f"{name}: rope type {rope['rope_type']!r} is not supported; supported are {', '.join(SUPPORTED_ROPE_TYPES)}"
        )
    for key, only in (("hidden_act", "silu"), ("partial_rotary_factor", 1.0), ("mlp_bias", False)):
        if config.get(key, only) != only:
            raise UserError(f"{name}: {key} {config[key]!r} is not supported; only {only!r} is")
    if config.get("attention_bias") and architectures[0] != "Qwen2ForCausalLM":
        raise UserError(f"{name}: attention_bias is supported for Qwen2ForCausalLM only, not for {architectures[0]}")
    _refuse_sliding_window(config, str(name), max_context)


def _refuse_sliding_window(config: Mapping[str, Any], name: str, max_context: int | None) -> None:
    windowed_by_default = config["architectures"][0] == "MistralForCausalLM"
    if not config.get("use_sliding_window", windowed_by_default):
        return
    window = config.get("sliding_window")
    context = max_context or _count(config, "max_position_embeddings")
    if window is not None and context > int(window):
        raise UserError(
            f"{name}: a sliding window of {window} tokens is below the context of {context} and not supported;"
            f" set engine.max_context to {window} or less"
        )


def _count(config: Mapping[str, Any], key: str, default: int | None = None) -> int:
    value = config.get(key)
    value = default if value is None else value
    if not isinstance(value, int) or value < 1:
        raise UserError(f"config.json: {key} must be a positive integer, not {value!r}")
    return value
