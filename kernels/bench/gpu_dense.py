"""Cases of the linear layers of Llama-3.1-8B on a GPU: one row (gemv), decode batches and a prefill in fp8 and int8.

The peer is what torch would do in bf16 (cuBLAS) unless its name says else. Weights rotate through more than 200 MB,
four times the L2 of an H100. A configuration's numbers are the fields of its class in their order.
"""

from collections.abc import Callable, Iterator
from dataclasses import fields
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from kernels.bench.case import Call, Case
from kernels.gpu.dense import dense_rows
from kernels.gpu.fp8 import fp8_matmul, pack_fp8
from kernels.gpu.gemv import GemvConfig, gemv
from kernels.gpu.int8 import int8_matmul, pack_int8
from kernels.gpu.quantized_rows import quantize_rows
from kernels.gpu.scaled_gemm import GemmConfig, scaled_gemm

QKV, ATTENTION_OUT, GATE_UP, DOWN, HEAD = (6144, 4096), (4096, 4096), (28672, 4096), (4096, 14336), (128256, 4096)
ROTATED_BYTES = 200e6
EPS = 1e-5


def cases() -> Iterator[Case]:
    yield from _gemv_plain()
    yield from _gemv_fused()
    yield from _gemv_configs()
    yield from _dense_batches()
    yield from _dense_configs()
    yield from _batches()
    yield from _batch_configs()


def _random(*shape: int) -> Tensor:
    return torch.randn(*shape, device="cuda", dtype=torch.bfloat16)


def _copies(make: Callable[[], object], num_bytes: float) -> list:
    return [make() for _ in range(int(ROTATED_BYTES // num_bytes) + 1)]


def _weights(kind: str, n: int, k: int) -> list[tuple[Tensor, Tensor | None]]:
    """(data, scale or None) of random weights, enough copies to rotate."""
    weight = _random(n, k)
    if kind == "bf16":
        return _copies(lambda: (weight.clone(), None), weight.nbytes)
    packed = pack_int8(weight) if kind == "int8" else pack_fp8(weight)
    data = packed.qdata if kind == "int8" else packed.data
    return _copies(lambda: (data.clone(), packed.scale), data.nbytes)


def _peer_weights(n: int, k: int) -> list[Tensor]:
    return _copies(lambda: _random(n, k), 2 * n * k)


def _gemv_calls(weights: list, x: Tensor, out: Tensor, **options: object) -> list[Call]:
    return [partial(gemv, x, data, out, scale=scale, **options) for data, scale in weights]


def _gemv_plain() -> Iterator[Case]:
    for n, k in (QKV, ATTENTION_OUT, GATE_UP, DOWN, HEAD):
        x, out, peers = _random(1, k), _random(1, n), _peer_weights(n, k)
        for kind in ("bf16", "int8", "fp8"):
            weights = _weights(kind, n, k)
            yield Case(
                operation=f"gemv {kind}",
                shape=f"1 x {n} x {k}",
                calls=_gemv_calls(weights, x, out),
                bytes=weights[0][0].nbytes + x.nbytes + out.nbytes,
                peer="cuBLAS bf16",
                peer_calls=[partial(functional.linear, x, w) for w in peers],
            )


def _gemv_fused() -> Iterator[Case]:
    hidden = ATTENTION_OUT[1]
    norm_weight = torch.rand(hidden, device="cuda") + 0.5
    norm_bf16 = norm_weight.bfloat16()
    norm = (norm_bf16, EPS)

    def normed(x: Tensor) -> Tensor:
        return functional.rms_norm(x, (hidden,), norm_bf16, EPS)

    def gated(x: Tensor, w: Tensor) -> Tensor:
        gate, up = functional.linear(x, w).chunk(2, dim=1)
        return functional.silu(gate) * up

    fused = (
        ("norm", QKV, QKV[0], {"norm": norm}, lambda x, w: functional.linear(normed(x), w)),
        ("residual", ATTENTION_OUT, ATTENTION_OUT[0], {"residual": True}, lambda x, w: functional.linear(x, w) + x),
        ("norm, gated", GATE_UP, GATE_UP[0] // 2, {"norm": norm, "gated": True}, lambda x, w: gated(normed(x), w)),
        ("gated", GATE_UP, GATE_UP[0] // 2, {"gated": True}, gated),
        ("residual", DOWN, DOWN[0], {"residual": True}, lambda x, w: functional.linear(x, w) + x[:, :hidden]),
    )
    for name, (n, k), outputs, options, peer in fused:
        x, out, peers = _random(1, k), _random(1, outputs), _peer_weights(n, k)
        if "residual" in options:
            options = {"residual": out}
        for kind in ("bf16", "int8", "fp8"):
            weights = _weights(kind, n, k)
            yield Case(
                operation=f"gemv {kind}, {name}",
                shape=f"1 x {n} x {k}",
                calls=_gemv_calls(weights, x, out, **options),
                bytes=weights[0][0].nbytes + x.nbytes + out.nbytes,
                peer="torch, op by op",
                peer_calls=[partial(peer, x, w) for w in peers],
            )


def _gemv_configs() -> Iterator[Case]:
    """(rows, block_k, warps, tiles ahead)"""
    eight = ((2, 2048, 4, 1), (1, 2048, 4, 2), (4, 2048, 4, 2), (4, 2048, 8, 2), (1, 4096, 2, 1), (2, 4096, 2, 1))
    eight_down = ((2, 2048, 4, 1), (2, 2048, 4, 4), (2, 2048, 4, 7), (1, 2048, 4, 4), (1, 2048, 4, 7), (4, 2048, 4, 2))
    sixteen = ((1, 2048, 4, 1), (2, 2048, 4, 2), (1, 4096, 2, 1), (2, 2048, 4, 1))
    sixteen_down = ((1, 2048, 4, 1), (1, 2048, 4, 4), (2, 2048, 4, 2))
    plain = (
        *((kind, shape, eight) for kind in ("int8", "fp8") for shape in (QKV, ATTENTION_OUT, GATE_UP, HEAD)),
        *((kind, DOWN, eight_down) for kind in ("int8", "fp8")),
        *(("bf16", shape, sixteen) for shape in (QKV, ATTENTION_OUT)),
        ("bf16", DOWN, sixteen_down),
    )
    gated = (
        ("int8", GATE_UP, ((2, 2048, 4, 1), (2, 2048, 4, 2), (1, 4096, 2, 1))),
        ("fp8", GATE_UP, ((2, 2048, 4, 1), (2, 2048, 4, 2), (1, 4096, 2, 1))),
        ("bf16", GATE_UP, ((1, 2048, 4, 2), (1, 1024, 4, 2))),
    )
    for is_gated, variants in ((False, plain), (True, gated)):
        for kind, (n, k), configs in variants:
            x, out, weights = _random(1, k), _random(1, n // 2 if is_gated else n), _weights(kind, n, k)
            for rows, block_k, num_warps, ahead in configs:
                config = GemvConfig(rows=rows, block_k=block_k, num_warps=num_warps, tiles_ahead=ahead)
                yield Case(
                    operation=f"gemv {kind}{', gated' * is_gated} config {rows} {block_k} {num_warps} {ahead}",
                    shape=f"1 x {n} x {k}",
                    calls=_gemv_calls(weights, x, out, config=config, gated=is_gated),
                    bytes=weights[0][0].nbytes + x.nbytes + out.nbytes,
                )


def _dense_batches() -> Iterator[Case]:
    """Decode batches in bf16; the head's logits are fp32."""
    for n, k in (QKV, ATTENTION_OUT, GATE_UP, DOWN, HEAD):
        weights = _peer_weights(n, k)
        for m in (2, 8, 16, 32, 64, 128):
            x = _random(m, k)
            out = torch.empty(m, n, dtype=torch.float32 if (n, k) == HEAD else torch.bfloat16, device="cuda")
            yield Case(
                operation="dense bf16",
                shape=f"{m} x {n} x {k}",
                calls=[partial(dense_rows, x, w, out, path="tiles") for w in weights],
                bytes=weights[0].nbytes + x.nbytes + out.nbytes,
                flops=2 * m * n * k,
                peer="cuBLAS bf16",
                peer_calls=[partial(dense_rows, x, w, out, path="library") for w in weights],
            )


def _dense_configs() -> Iterator[Case]:
    variants = (
        (16, QKV, ((16, 64, 128, 1, 4, 8), (16, 32, 256, 1, 4, 4))),
        (32, QKV, ((32, 64, 128, 1, 4, 8),)),
        (64, QKV, ((64, 64, 128, 1, 4, 6),)),
        (16, ATTENTION_OUT, ((16, 64, 128, 1, 4, 8), (16, 64, 128, 2, 4, 8), (16, 32, 256, 1, 4, 6))),
        (32, ATTENTION_OUT, ((32, 64, 128, 1, 4, 8), (32, 64, 128, 2, 4, 8), (32, 32, 256, 1, 4, 6))),
        (32, ATTENTION_OUT, ((32, 64, 128, 4, 4, 4, 0), (32, 64, 128, 4, 4, 4, 8))),
        (64, ATTENTION_OUT, ((64, 64, 128, 1, 4, 6), (64, 64, 128, 2, 4, 6))),
        (16, GATE_UP, ((16, 64, 128, 1, 4, 3), (16, 128, 64, 1, 4, 6))),
        (32, GATE_UP, ((32, 128, 64, 1, 4, 5), (32, 64, 128, 1, 4, 4, 0), (32, 64, 128, 1, 4, 4, 8))),
        (64, GATE_UP, ((64, 64, 128, 1, 4, 3), (64, 128, 64, 1, 8, 4), (64, 256, 64, 1, 8, 5))),
        (128, GATE_UP, ((128, 128, 64, 1, 8, 3), (128, 256, 64, 1, 8, 4))),
        (16, DOWN, ((16, 64, 128, 2, 4, 8), (16, 32, 256, 1, 4, 8))),
        (32, DOWN, ((32, 64, 128, 2, 4, 8), (32, 32, 256, 1, 4, 6))),
        (64, DOWN, ((64, 64, 128, 2, 4, 6),)),
    )
    for m, (n, k), configs in variants:
        x, out, weights = _random(m, k), _random(m, n), _peer_weights(n, k)
        for config in configs:
            yield Case(
                operation="dense bf16 config " + " ".join(map(str, config)),
                shape=f"{m} x {n} x {k}",
                calls=[partial(dense_rows, x, w, out, path="tiles", config=_gemm_config(config)) for w in weights],
                bytes=weights[0].nbytes + x.nbytes + out.nbytes,
                flops=2 * m * n * k,
            )


def _gemm_config(values: tuple[int, ...]) -> GemmConfig:
    names = [field.name for field in fields(GemmConfig)]
    return GemmConfig(**dict(zip(names, values, strict=False)))


def _batches() -> Iterator[Case]:
    for n, k in (GATE_UP, ATTENTION_OUT):
        peers = _peer_weights(n, k)
        weight, one = peers[0], torch.ones((), device="cuda")
        fp8, int8 = pack_fp8(weight), pack_int8(weight)
        fp8s = _copies(lambda: type(fp8)(data=fp8.data.clone(), scale=fp8.scale), n * k)  # noqa: B023
        int8s = _copies(lambda: type(int8)(qdata=int8.qdata.clone(), scale=int8.scale), n * k)  # noqa: B023
        for m in (16, 64, 128, 256, 8192):
            x = _random(m, k).clamp(-5, 5)
            with_outliers = x.clone()
            with_outliers[:, 7 :: k // 16] = 20.0
            rows, eights = quantize_rows(x, "fp8"), quantize_rows(x, "int8")
            common = {
                "shape": f"{m} x {n} x {k}",
                "bytes": n * k + m * k + 2 * m * n,
                "flops": 2 * m * n * k,
                "peer": "cuBLAS bf16",
                "peer_calls": [partial(functional.linear, x, w) for w in peers],
            }
            for path in ("triton", "rows"):
                calls = [partial(fp8_matmul, rows, w, path=path) for w in fp8s]
                yield Case(operation=f"fp8 {path}, quantised rows", calls=calls, flops_dtype="fp8", **common)
            calls = [partial(_tensor_wise, rows.data, w.data, one) for w in fp8s]
            yield Case(operation="fp8 cuBLAS, tensor-wise, no scales", calls=calls, flops_dtype="fp8", **common)
            yield Case(
                operation="fp8 with quantisation",
                calls=[partial(fp8_matmul, x, w) for w in fp8s],
                flops_dtype="fp8",
                **common,
            )
            if m == 16:
                calls = [partial(int8_matmul, x, w) for w in int8s]
                yield Case(operation="int8 weight-only", calls=calls, **common)
                continue
            for name, values, threshold in (
                ("no threshold", x, None),
                ("no outlier", x, 6.0),
                ("16 outlier columns", with_outliers, 6.0),
            ):
                calls = [partial(int8_matmul, values, w, outlier_threshold=threshold) for w in int8s]
                yield Case(operation=f"LLM.int8, {name}", calls=calls, flops_dtype="int8", **common)
            calls = [partial(scaled_gemm, eights.data, eights.scale, w.qdata, w.scale) for w in int8s]
            yield Case(operation="int8 triton, quantised rows", calls=calls, flops_dtype="int8", **common)
            calls = [partial(torch._int_mm, eights.data, w.qdata.t()) for w in int8s]
            yield Case(operation="int8 cuBLAS, int32 out, no scales", calls=calls, flops_dtype="int8", **common)


def _tensor_wise(rows: Tensor, weight: Tensor, one: Tensor) -> Tensor:
    return torch._scaled_mm(rows, weight.t(), scale_a=one, scale_b=one, out_dtype=torch.bfloat16, use_fast_accum=True)


def _batch_configs() -> Iterator[Case]:
    variants = (
        ("fp8", 16, GATE_UP, ((16, 128, 128, 1, 4, 6), (16, 64, 128, 1, 4, 8), (16, 64, 256, 1, 4, 4, 0))),
        ("fp8", 16, ATTENTION_OUT, ((16, 64, 256, 1, 4, 8), (16, 64, 256, 2, 4, 8), (16, 32, 256, 1, 4, 8))),
        ("fp8", 32, ATTENTION_OUT, ((32, 64, 256, 1, 4, 8), (32, 64, 256, 2, 4, 8), (32, 64, 256, 4, 4, 4))),
        ("fp8", 64, ATTENTION_OUT, ((64, 64, 128, 1, 4, 10), (64, 64, 128, 2, 4, 8), (64, 64, 256, 2, 4, 6))),
        ("fp8", 64, GATE_UP, ((64, 128, 128, 1, 4, 4),)),
        ("int8", 128, ATTENTION_OUT, ((128, 64, 128, 2, 4, 6), (128, 128, 128, 4, 8, 4), (64, 64, 128, 2, 4, 6))),
        ("int8", 128, GATE_UP, ((128, 128, 128, 1, 4, 3), (128, 128, 128, 1, 8, 4))),
        ("int8", 256, ATTENTION_OUT, ((128, 128, 128, 2, 8, 4), (64, 128, 128, 1, 4, 6), (128, 64, 128, 2, 4, 6))),
        ("fp8", 8192, GATE_UP, ((256, 128, 128, 1, 8, 4), (128, 256, 128, 1, 8, 4))),
    )
    for kind, m, (n, k), configs in variants:
        rows, weights = quantize_rows(_random(m, k), kind), _weights(kind, n, k)
        for config in configs:
            c = _gemm_config(config)
            yield Case(
                operation=f"{kind} config " + " ".join(map(str, config)),
                shape=f"{m} x {n} x {k}",
                calls=[partial(scaled_gemm, rows.data, rows.scale, w, scale, config=c) for w, scale in weights],
                bytes=n * k + m * k + 2 * m * n,
                flops=2 * m * n * k,
                flops_dtype=kind,
            )
