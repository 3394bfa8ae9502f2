"""The row operations of Llama-3.1-8B to be timed on a GPU: norm, activation, 8-bit rows, sampling; it times nothing.

A call's tensors are rotated through copies, at most 16: the few rows of a decode step are in the L2 in a real step too.
"""

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from kernels.bench.case import Call, Case
from kernels.gpu.activation import SiluMulConfig, silu_mul
from kernels.gpu.quantized_rows import QuantizedKind, empty_quantized_rows, quantize_rows
from kernels.gpu.rms_norm import RmsNormConfig, rms_norm
from kernels.gpu.sampling import DeviceSampling, SamplingConfig, sample_tokens, sampling_scratch

HIDDEN, FFN, VOCAB = 4096, 14336, 128256
ROTATED_BYTES = 100 * 1024 * 1024


def cases() -> Iterator[Case]:
    for rows in (1, 32, 256, 8192):
        yield _rms_norm_case(rows, None, None)
        yield _rms_norm_case(rows, "fp8", None)
    for warps in (4, 16):
        yield _rms_norm_case(32, None, RmsNormConfig(rows_per_tile=1, tiles_per_program=1, num_warps=warps))
    for tiles, warps in ((1, 8), (8, 8)):
        yield _rms_norm_case(8192, None, RmsNormConfig(rows_per_tile=1, tiles_per_program=tiles, num_warps=warps))
    for rows in (32, 256, 8192):
        yield _silu_mul_case(rows, None, None)
        yield _silu_mul_case(rows, "fp8", None)
    yield _silu_mul_case(8192, None, SiluMulConfig(block=2048, num_warps=4))
    for rows in (32, 256, 8192):
        for warps in (8, 16):
            yield _silu_mul_case(rows, "fp8", SiluMulConfig(block=16384, num_warps=warps))
    yield _quantize_rows_case(8192)
    for rows in (1, 32, 256):
        for name, temperature, top_k, top_p in (
            ("greedy", 0.0, 0, 1.0),
            ("temperature", 1.0, 0, 1.0),
            ("top_p 0.9", 1.0, 0, 0.9),
            ("top_k 50", 1.0, 50, 1.0),
        ):
            yield _sampling_case(rows, name, temperature, top_k, top_p, None)
    for blocks in (2, 8):
        config = SamplingConfig(blocks_per_program=blocks, score_warps=4, choose_warps=16)
        yield _sampling_case(256, "temperature", 1.0, 0, 1.0, config)
    config = SamplingConfig(blocks_per_program=1, score_warps=4, choose_warps=8)
    yield _sampling_case(1, "top_k 50", 1.0, 50, 1.0, config)


def _copies(bytes_a_call: int) -> int:
    return min(max(ROTATED_BYTES // bytes_a_call + 1, 2), 16)


def _random(rows: int, width: int) -> Tensor:
    return torch.randn(rows, width, dtype=torch.bfloat16, device="cuda")


def _named(name: str, config: object) -> str:
    return name if config is None else f"{name} {config}"


def _rms_norm_case(rows: int, quantize: QuantizedKind | None, config: RmsNormConfig | None) -> Case:
    moved = rows * HIDDEN * (6 + (2 if quantize is None else 1)) + 2 * HIDDEN
    weight = torch.rand(HIDDEN, device="cuda").bfloat16()
    calls: list[Call] = []
    peers: list[Call] = []
    for _ in range(_copies(moved)):
        # The residual grows call by call until a step of bf16 is more than x: large, never infinite.
        x, residual = _random(rows, HIDDEN), _random(rows, HIDDEN)
        out = torch.empty_like(x) if quantize is None else empty_quantized_rows(rows, HIDDEN, quantize, x.device)
        calls.append(partial(rms_norm, x, weight, 1e-5, residual, out, quantize, config))
        peers.append(partial(_torch_add_rms_norm, x, residual, weight))
    return Case(
        operation=_named(f"rms_norm + residual{' + fp8 rows' if quantize else ''}", config),
        shape=f"{rows} x {HIDDEN}",
        calls=calls,
        bytes=moved,
        peer="torch add_, rms_norm",
        peer_calls=peers,
    )


def _torch_add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor) -> Tensor:
    return functional.rms_norm(residual.add_(x), weight.shape, weight, 1e-5)


def _silu_mul_case(rows: int, quantize: QuantizedKind | None, config: SiluMulConfig | None) -> Case:
    moved = rows * FFN * (4 + (2 if quantize is None else 1))
    calls: list[Call] = []
    peers: list[Call] = []
    for _ in range(_copies(moved)):
        gate_up = _random(rows, 2 * FFN)
        out = (
            gate_up.new_empty(rows, FFN)
            if quantize is None
            else empty_quantized_rows(rows, FFN, quantize, gate_up.device)
        )
        calls.append(partial(silu_mul, gate_up, out, quantize, config))
        peers.append(partial(_torch_silu_mul, gate_up))
    return Case(
        operation=_named(f"silu_mul{' + fp8 rows' if quantize else ''}", config),
        shape=f"{rows} x {FFN}",
        calls=calls,
        bytes=moved,
        peer="torch silu, mul",
        peer_calls=peers,
    )


def _torch_silu_mul(gate_up: Tensor) -> Tensor:
    gate, up = gate_up.chunk(2, dim=-1)
    return functional.silu(gate) * up


def _quantize_rows_case(rows: int) -> Case:
    x = [_random(rows, HIDDEN) for _ in range(2)]
    out = empty_quantized_rows(rows, HIDDEN, "fp8", x[0].device)
    return Case(
        operation="quantize_rows fp8",
        shape=f"{rows} x {HIDDEN}",
        calls=[partial(quantize_rows, one, "fp8", out) for one in x],
        bytes=rows * HIDDEN * 3,
    )


def _sampling_case(
    rows: int, name: str, temperature: float, top_k: int, top_p: float, config: SamplingConfig | None
) -> Case:
    """Logits of spread 3: of the 128256 tokens about 5500 hold nine tenths of the mass, as of an unsure model."""
    moved = rows * VOCAB * 2
    params = DeviceSampling(
        temperature=torch.full((rows,), temperature, device="cuda"),
        top_k=torch.full((rows,), top_k, dtype=torch.int32, device="cuda"),
        top_p=torch.full((rows,), top_p, device="cuda"),
        min_p=torch.zeros(rows, device="cuda"),
        seed=torch.arange(rows, device="cuda"),
        position=torch.zeros(rows, dtype=torch.int32, device="cuda"),
    )
    scratch = sampling_scratch(rows, VOCAB, "cuda")
    out = torch.empty(rows, dtype=torch.int64, device="cuda")
    logits = [_random(rows, VOCAB) * 3 for _ in range(_copies(moved))]
    greedy = temperature == 0
    peer = torch.argmax if greedy else _torch_multinomial
    return Case(
        operation=_named(f"sampling {name}", config),
        shape=f"{rows} x {VOCAB}",
        calls=[partial(sample_tokens, one, params, out, scratch, config) for one in logits],
        bytes=moved,
        peer="torch argmax" if greedy else "torch softmax, multinomial (no filter)",
        peer_calls=[partial(peer, one, -1) for one in logits],
    )


def _torch_multinomial(logits: Tensor, dim: int) -> Tensor:
    return torch.multinomial(torch.softmax(logits, dim, dtype=torch.float32), 1)
