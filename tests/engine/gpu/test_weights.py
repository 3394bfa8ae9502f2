"""What becomes of a checkpoint's tensors on a GPU: GPTQ's and AWQ's 4-bit layouts, packed here bit by bit from known
integers, and made-up weights of every method."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from cluster.errors import UserError
from cluster.model_shape import ModelShape
from cluster.variants import Method, Variant
from engine.gpu.linear import DenseLinear, FourBitLinear, Fp8Linear, GpuLinear, Int8Linear
from engine.gpu.runner import GpuRunner
from engine.gpu.weights import CheckpointSource, DummySource, GpuWeights, load_gpu_weights
from engine.trial import Trial
from engine.weights import CheckpointTensors
from kernels.gpu.int4 import dequantize_int4_reference
from tests.engine.gpu.conftest import write_checkpoint
from tests.engine.gpu.greedy import spec_of

GROUP = 32
HIDDEN, FFN, VOCAB = 64, 96, 16
PARTS = {
    "self_attn.q_proj": (64, HIDDEN),
    "self_attn.k_proj": (32, HIDDEN),
    "self_attn.v_proj": (32, HIDDEN),
    "self_attn.o_proj": (HIDDEN, 64),
    "mlp.gate_proj": (FFN, HIDDEN),
    "mlp.up_proj": (FFN, HIDDEN),
    "mlp.down_proj": (HIDDEN, FFN),
}
PREFIX = "model.layers.0"
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": HIDDEN,
    "intermediate_size": FFN,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": VOCAB,
    "max_position_embeddings": 128,
}
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": GROUP}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": GROUP, "zero_point": True, "version": "gemm"}
AWQ_NIBBLE_OF_COLUMN = (0, 4, 1, 5, 2, 6, 3, 7)


@dataclass(frozen=True, slots=True, kw_only=True)
class Integers:
    """One matrix before it is packed; weight[n, k] = (codes[n, k] - zeros[n, g]) * scales[n, g], g = g_idx[k]."""

    codes: Tensor
    zeros: Tensor
    scales: Tensor
    g_idx: Tensor

    @classmethod
    def random(cls, rows: int, columns: int, zeros: range, g_idx: Tensor, generator: torch.Generator) -> Integers:
        def draw(low: int, high: int, *shape: int) -> Tensor:
            return torch.randint(low, high, shape, generator=generator)

        groups = columns // GROUP
        return cls(
            codes=draw(0, 16, rows, columns),
            zeros=draw(zeros.start, zeros.stop, rows, groups),
            scales=(draw(1, 100, rows, groups) / 1000).half(),
            g_idx=g_idx,
        )

    @property
    def weight(self) -> Tensor:
        """[rows, columns] float64, element by element."""
        rows, columns = self.codes.shape
        weight = torch.empty(rows, columns, dtype=torch.float64)
        for k in range(columns):
            g = int(self.g_idx[k])
            weight[:, k] = (self.codes[:, k] - self.zeros[:, g]).double() * self.scales[:, g].double()
        return weight


def word_of(nibbles: list[int]) -> int:
    """Bit by bit, as a signed 32-bit word; nibble i begins at bit 4 i."""
    bits = [nibble >> bit & 1 for nibble in nibbles for bit in range(4)]
    word = sum(1 << place for place, bit in enumerate(bits) if bit)
    return word - (1 << 32) if bits[31] else word


def words_along_rows(values: Tensor) -> Tensor:
    """[R, C] -> [R / 8, C]: a word holds eight rows of one column."""
    columns = values.T.tolist()
    words = [[word_of(column[at : at + 8]) for at in range(0, len(column), 8)] for column in columns]
    return torch.tensor(words, dtype=torch.int32).T.contiguous()


def words_along_columns(values: Tensor, nibble_of_column: tuple[int, ...] = tuple(range(8))) -> Tensor:
    """[R, C] -> [R, C / 8]: a word holds eight columns of one row."""

    def word(eight: list[int]) -> int:
        nibbles = [0] * 8
        for column, value in enumerate(eight):
            nibbles[nibble_of_column[column]] = value
        return word_of(nibbles)

    rows = values.tolist()
    return torch.tensor([[word(row[at : at + 8]) for at in range(0, len(row), 8)] for row in rows], dtype=torch.int32)


def gptq_tensors(matrix: Integers, *, stored_below: int) -> dict[str, Tensor]:
    return {
        "qweight": words_along_rows(matrix.codes.T),
        "qzeros": words_along_columns((matrix.zeros - stored_below).T),
        "scales": matrix.scales.T.contiguous(),
        "g_idx": matrix.g_idx.to(torch.int32),
    }


def awq_tensors(matrix: Integers) -> dict[str, Tensor]:
    return {
        "qweight": words_along_columns(matrix.codes.T, AWQ_NIBBLE_OF_COLUMN),
        "qzeros": words_along_columns(matrix.zeros.T, AWQ_NIBBLE_OF_COLUMN),
        "scales": matrix.scales.T.contiguous(),
    }


def matrices(zeros: range, *, act_order: bool = False, common: bool = True) -> dict[str, Integers]:
    """Matrices that read one input have one order of columns, as one Hessian gives it; unless not `common`."""
    generator = torch.Generator().manual_seed(3)
    made = {}
    for name, (rows, columns) in PARTS.items():
        of_input = torch.Generator().manual_seed(columns if common else len(made))
        order = torch.randperm(columns, generator=of_input) if act_order else torch.arange(columns)
        made[name] = Integers.random(rows, columns, zeros, (torch.arange(columns) // GROUP)[order], generator)
    return made


def write(folder: Path, packed: dict[str, dict[str, Tensor]], quantization: dict[str, object] | None) -> Path:
    config = CONFIG if quantization is None else CONFIG | {"quantization_config": quantization}
    (folder / "config.json").write_text(json.dumps(config))
    tensors = {"model.embed_tokens.weight": torch.zeros(VOCAB, HIDDEN), "lm_head.weight": torch.zeros(VOCAB, HIDDEN)}
    for norm in ("model.norm", f"{PREFIX}.input_layernorm", f"{PREFIX}.post_attention_layernorm"):
        tensors[f"{norm}.weight"] = torch.ones(HIDDEN)
    for name, parts in packed.items():
        tensors |= {f"{PREFIX}.{name}.{part}": tensor for part, tensor in parts.items()}
    save_file(tensors, folder / "model.safetensors")
    return folder


def load(folder: Path, method: Method, device: str) -> GpuWeights:
    with CheckpointTensors(folder) as tensors:
        shape = ModelShape.from_hf_config(folder)
        return load_gpu_weights(CheckpointSource(tensors, method, device), shape, Variant(name=method, method=method))


def assert_holds(weights: GpuWeights, expected: dict[str, Integers]) -> None:
    """q above k above v, the gate above up."""
    (layer,) = weights.layers
    products: dict[str, tuple[GpuLinear, list[str]]] = {
        "qkv": (layer.qkv, ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]),
        "o": (layer.o, ["self_attn.o_proj"]),
        "gate_up": (layer.gate_up, ["mlp.gate_proj", "mlp.up_proj"]),
        "down": (layer.down, ["mlp.down_proj"]),
    }
    for product, (linear, names) in products.items():
        assert isinstance(linear, FourBitLinear)
        found = dequantize_int4_reference(linear.packed).cpu()
        assert torch.equal(found, torch.cat([expected[name].weight for name in names])), product


@pytest.mark.parametrize("act_order", [False, True], ids=["in-order", "act-order"])
@pytest.mark.parametrize("zeros", [range(8, 9), range(1, 17)], ids=["sym", "asym"])
def test_gptq_keeps_its_weights(tmp_path: Path, device: str, zeros: range, act_order: bool) -> None:
    made = matrices(zeros, act_order=act_order)
    packed = {name: gptq_tensors(matrix, stored_below=1) for name, matrix in made.items()}
    weights = load(write(tmp_path, packed, GPTQ | {"desc_act": act_order}), "gptq", device)
    assert_holds(weights, made)
    for linear in (weights.layers[0].qkv, weights.layers[0].down):
        assert (linear.packed.input_order is not None) == act_order
        assert (linear.packed.zeros is not None) == (len(zeros) > 1)


def test_gptq_v2_stores_its_zeros_as_they_are(tmp_path: Path, device: str) -> None:
    made = matrices(range(0, 16))
    packed = {name: gptq_tensors(matrix, stored_below=0) for name, matrix in made.items()}
    assert_holds(load(write(tmp_path, packed, GPTQ | {"checkpoint_format": "gptq_v2"}), "gptq", device), made)


def test_awq_keeps_its_weights(tmp_path: Path, device: str) -> None:
    made = matrices(range(0, 16))
    packed = {name: awq_tensors(matrix) for name, matrix in made.items()}
    assert_holds(load(write(tmp_path, packed, AWQ), "awq", device), made)


def test_act_order_that_differs_between_q_k_and_v_is_refused(tmp_path: Path, device: str) -> None:
    made = matrices(range(8, 9), act_order=True, common=False)
    packed = {name: gptq_tensors(matrix, stored_below=1) for name, matrix in made.items()}
    folder = write(tmp_path, packed, GPTQ | {"desc_act": True})
    with pytest.raises(UserError, match=r"q_proj.*k_proj.*v_proj.*act-order differs"):
        load(folder, "gptq", device)


LINEAR_OF: dict[Method, type[GpuLinear]] = {
    "none": DenseLinear,
    "fp8": Fp8Linear,
    "int8": Int8Linear,
    "nf4": FourBitLinear,
    "gptq": FourBitLinear,
}


@pytest.mark.parametrize("method", LINEAR_OF)
def test_made_up_weights_of_every_method_give_finite_logits(tmp_path: Path, device: str, method: Method) -> None:
    """Of logits that are not finite the sampler draws nothing, and the runner says so."""
    folder = write_checkpoint(tmp_path, hidden_size=64, intermediate_size=64, num_hidden_layers=1)
    variant = Variant(name=method, method=method)
    (layer,) = load_gpu_weights(DummySource(device, method), ModelShape.from_hf_config(folder), variant).layers
    assert {type(linear) for linear in (layer.qkv, layer.o, layer.gate_up, layer.down)} == {LINEAR_OF[method]}
    spec = spec_of(folder, device, variant, load_format="dummy", max_sequences=2, kv_capacity_tokens=32)
    runner = GpuRunner(spec)
    runner.allocate(2)
    (result,) = runner.run(Trial(chunk=2).chunks(spec.block_size))
    assert result.error is None
    assert result.token_id is not None


def test_every_made_up_matrix_is_its_own(device: str) -> None:
    shape = ModelShape.from_hf_config(CONFIG | {"num_hidden_layers": 2, "_name_or_path": "made-up"})
    first, again = (load_gpu_weights(DummySource(device, "none"), shape, Variant(name="bf16")) for _ in range(2))
    one, two = first.layers
    for this, other in ((one.qkv, two.qkv), (one.o, two.o), (one.gate_up, two.gate_up), (one.down, two.down)):
        assert not torch.equal(this.weight, other.weight)
    assert not torch.equal(one.qkv.weight[:32], one.qkv.weight[64:96])
    assert not torch.equal(first.embedding, first.head.weight)
    assert torch.equal(one.qkv.weight, again.layers[0].qkv.weight)
