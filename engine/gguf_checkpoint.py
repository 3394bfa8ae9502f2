"""A GGUF file rewritten as a checkpoint of bf16 safetensors, config.json and tokenizer.json; it runs no model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from cluster.errors import UserError

BF16_BYTES = 2
CONTROL_TOKEN = 3
"""gguf's token_type of special tokens."""
BLOCK_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
TOP_NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
# Splits before byte-level BPE, by llama.cpp's name for them (llama-vocab.cpp); GPT-2's own regex follows each.
DIGITS_ONE_BY_ONE = ("smollm", "refact", "command-r", "starcoder")


class GgufFile:
    """Metadata and tensors of one file, read lazily from its memory map."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.reader = gguf.GGUFReader(path)
        except (ValueError, IndexError, KeyError) as error:
            raise UserError(f"{path}: not a complete GGUF file ({error}); delete it and fetch it again") from error

    def value(self, key: str, default: Any = None) -> Any:
        field = self.reader.get_field(key)
        if field is not None:
            return field.contents()
        if default is None:
            raise UserError(f"{self.path}: no metadata {key}; not a complete GGUF file")
        return default

    def architecture_value(self, key: str, default: Any = None) -> Any:
        return self.value(f"llama.{key}", default)

    @property
    def tensor_names(self) -> set[str]:
        return {tensor.name for tensor in self.reader.tensors}


def convert(path: Path, folder: Path, name: str) -> None:
    """Writes the checkpoint into an existing folder; q and k rows go back from llama.cpp's order to Hugging Face's."""
    file = GgufFile(path)
    architecture = file.value("general.architecture")
    if architecture != "llama":
        raise UserError(f"{path}: GGUF architecture {architecture!r} is not supported, llama is; use its safetensors")
    _write_json(folder / "config.json", _config(file, name))
    _write_json(folder / "generation_config.json", _generation_config(file))
    _write_tokenizer(file, folder)
    _write_tensors(file, folder / "model.safetensors")


def _config(file: GgufFile, name: str) -> dict[str, Any]:
    hidden, heads = file.architecture_value("embedding_length"), file.architecture_value("attention.head_count")
    return {
        "_name_or_path": name,
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": hidden,
        "intermediate_size": file.architecture_value("feed_forward_length"),
        "num_hidden_layers": file.architecture_value("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": file.architecture_value("attention.head_count_kv", heads),
        "head_dim": file.architecture_value("rope.dimension_count", hidden // heads),
        "max_position_embeddings": file.architecture_value("context_length"),
        # Stored as fp32: 9.999999747378752e-06 is 1e-5, and six digits bring it back.
        "rms_norm_eps": float(f"{file.architecture_value('attention.layer_norm_rms_epsilon'):.6g}"),
        "rope_parameters": {"rope_type": "default", "rope_theta": file.architecture_value("rope.freq_base", 10000.0)},
        "vocab_size": len(file.value("tokenizer.ggml.tokens")),
        "tie_word_embeddings": "output.weight" not in file.tensor_names,
        "attention_bias": False,
        "mlp_bias": False,
        "dtype": "bfloat16",
        "bos_token_id": file.value("tokenizer.ggml.bos_token_id"),
        "eos_token_id": file.value("tokenizer.ggml.eos_token_id"),
        "pad_token_id": file.value("tokenizer.ggml.padding_token_id", 0),
    }


def _generation_config(file: GgufFile) -> dict[str, Any]:
    """A chat model ends a turn with its eos token; the end of a text (<|endoftext|>) ends a completion just as well."""
    tokens = file.value("tokenizer.ggml.tokens")
    ends = [file.value("tokenizer.ggml.eos_token_id")]
    if "<|endoftext|>" in tokens and tokens.index("<|endoftext|>") not in ends:
        ends.append(tokens.index("<|endoftext|>"))
    return {
        "bos_token_id": file.value("tokenizer.ggml.bos_token_id"),
        "eos_token_id": ends,
        "pad_token_id": file.value("tokenizer.ggml.padding_token_id", 0),
    }


def _write_tokenizer(file: GgufFile, folder: Path) -> None:
    kind, split = file.value("tokenizer.ggml.model"), file.value("tokenizer.ggml.pre", "default")
    if kind != "gpt2" or split not in DIGITS_ONE_BY_ONE:
        raise UserError(f"{file.path}: GGUF tokenizer {kind}/{split} is not supported; use the model's safetensors")
    tokens, types = file.value("tokenizer.ggml.tokens"), file.value("tokenizer.ggml.token_type")
    merges = [tuple(merge.split(" ")) for merge in file.value("tokenizer.ggml.merges")]
    tokenizer = Tokenizer(models.BPE(vocab={token: rank for rank, token in enumerate(tokens)}, merges=merges))
    digits = pre_tokenizers.Digits(individual_digits=True)
    words = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, words])
    tokenizer.decoder = decoders.ByteLevel()
    special = [token for token, kind in zip(tokens, types, strict=True) if kind == CONTROL_TOKEN]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    tokenizer.save(str(folder / "tokenizer.json"))
    _write_json(folder / "tokenizer_config.json", _tokenizer_config(file, tokens))


def _tokenizer_config(file: GgufFile, tokens: list[str]) -> dict[str, Any]:
    def token(key: str) -> str:
        return tokens[int(file.value(f"tokenizer.ggml.{key}_token_id"))]

    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": file.architecture_value("context_length"),
        "bos_token": token("bos"),
        "eos_token": token("eos"),
        "pad_token": token("padding"),
        "unk_token": token("unknown"),
        "chat_template": file.value("tokenizer.chat_template"),
    }


def _write_tensors(file: GgufFile, path: Path) -> None:
    """The safetensors format: length of the header, the header as JSON, the data; one tensor in memory at a time."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor in file.reader.tensors:
        start, end = end, end + BF16_BYTES * int(tensor.n_elements)
        shape = [int(size) for size in reversed(tensor.shape)]  # gguf names the fastest dimension first
        header[_hf_name(file.path, tensor.name)] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)  # data starts on a multiple of 8
    with path.open("wb") as out:
        out.write(len(encoded).to_bytes(8, "little") + encoded)
        for tensor in file.reader.tensors:
            out.write(_bf16_bytes(_hf_weight(file, tensor)))


def _hf_weight(file: GgufFile, tensor: gguf.ReaderTensor) -> npt.NDArray[np.float32]:
    weight = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
    heads = file.architecture_value("attention.head_count")
    if ".attn_q." in tensor.name:
        return _rows_in_halves(weight, heads)
    if ".attn_k." in tensor.name:
        return _rows_in_halves(weight, file.architecture_value("attention.head_count_kv", heads))
    return weight


def _rows_in_halves(weight: npt.NDArray[np.float32], heads: int) -> npt.NDArray[np.float32]:
    """llama.cpp rotates neighbours (2i, 2i+1), Hugging Face halves (i, i + head_dim / 2): the same pairs, reordered."""
    pairs = weight.reshape(heads, weight.shape[0] // heads // 2, 2, weight.shape[1])
    return pairs.swapaxes(1, 2).reshape(weight.shape)


def _bf16_bytes(weight: npt.NDArray[np.float32]) -> bytes:
    """Round to nearest, ties to even, as torch does; weights hold no NaN."""
    bits = np.ascontiguousarray(weight, dtype=np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return rounded.astype("<u2").tobytes()


def _hf_name(path: Path, gguf_name: str) -> str:
    stem, kind = gguf_name.rsplit(".", 1)
    if stem in TOP_NAMES:
        return f"{TOP_NAMES[stem]}.{kind}"
    prefix, layer, part = (*stem.split("."), "", "")[:3]
    if prefix != "blk" or part not in BLOCK_NAMES:
        raise UserError(f"{path}: tensor {gguf_name} belongs to no supported model; use the model's safetensors")
    return f"model.layers.{layer}.{BLOCK_NAMES[part]}.{kind}"


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
