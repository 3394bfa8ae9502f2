"""Times every CPU operation on SmolLM2-135M's shapes beside its bound and torch's own op.

The bound is the larger of bytes over the read bandwidth and floating-point operations over the sgemm peak, both
measured first in the same run (int8 may beat it: its multiply-adds are narrower). Weights and caches are rotated
through more copies than the last-level cache holds. Times are minima; with one thread they are its CPU time, so that
neighbours on the machine cost less.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from kernels import threads
from kernels.activation import silu_mul
from kernels.checkpoint_layouts import IntegerWeight
from kernels.dense_matmul import dense_matmul, pack_dense
from kernels.int4_matmul import PackedInt4Panels, int4_matmul, pack_int4
from kernels.int8_matmul import int8_matmul, pack_int8, quantize_int8
from kernels.kv_layout import LayerCache, allocate_kv_cache
from kernels.nf4_matmul import nf4_matmul, pack_nf4, quantize_nf4
from kernels.paged_attention import paged_attention
from kernels.rms_norm import rms_norm
from kernels.rotary import rope_tables, rotary_kv_write
from kernels.sampling import batch_of_settings, sample

LAYERS, HIDDEN, FFN, VOCAB, HEADS, KV_HEADS, HEAD_DIM = 30, 576, 1536, 49152, 9, 3, 64
QKV = (HEADS + 2 * KV_HEADS) * HEAD_DIM
INT4_GROUP = 64
LINEARS = ((QKV, HIDDEN, LAYERS), (HIDDEN, HIDDEN, LAYERS), (2 * FFN, HIDDEN, LAYERS), (HIDDEN, FFN, LAYERS))
HEAD = ((VOCAB, HIDDEN, 1),)
CACHE_BYTES = 64 * 1024 * 1024
Call = Callable[[], object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    bytes_per_s: float
    flops_per_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """Seconds a step of the whole model spends in an operation."""

    name: str
    ours_s: float
    bytes_read: float
    flops: float
    peer: str
    peer_s: float


def best(calls: list[Call], seconds: float) -> float:
    """The fastest of many single calls, going through `calls` in turn."""
    clock = time.thread_time if threads.num_threads() == 1 else time.perf_counter
    fastest, end = float("inf"), time.perf_counter() + seconds
    while True:
        for call in calls:
            start = clock()
            call()
            fastest = min(fastest, clock() - start)
            if time.perf_counter() > end:
                return fastest


def measure_machine(seconds: float) -> Machine:
    pieces = torch.ones(16, 4 * 1024 * 1024).unbind()
    a, b = torch.randn(2, 768, 768)
    read = best([piece.sum for piece in pieces], seconds)
    product = best([lambda: a @ b], seconds)
    return Machine(bytes_per_s=pieces[0].nbytes / read, flops_per_s=2 * 768**3 / product)


def pack_rounded_int4(weight: Tensor) -> PackedInt4Panels:
    """Nearest integers between the minimum and maximum of each group."""
    groups = weight.unflatten(1, (-1, INT4_GROUP))
    low, high = groups.amin(-1), groups.amax(-1)
    scales = (high - low) / 15
    zeros = (-low / scales).round().clamp(0, 15)
    codes = (groups / scales[..., None] + zeros[..., None]).round().clamp(0, 15).flatten(1)
    return pack_int4(
        IntegerWeight(
            codes=codes.to(torch.uint8),
            scales=scales,
            zeros=zeros.to(torch.uint8),
            group_of=torch.arange(weight.shape[1], dtype=torch.int32) // INT4_GROUP,
            bits=4,
        )
    )


def linear_lines(rows: int, seconds: float) -> Iterator[Line]:
    formats = (
        ("bf16", lambda w: pack_dense(w.bfloat16()), dense_matmul),
        ("int8", lambda w: pack_int8(quantize_int8(w)), int8_matmul),
        ("nf4", lambda w: pack_nf4(quantize_nf4(w)), nf4_matmul),
        ("int4", pack_rounded_int4, int4_matmul),
    )
    for name, shapes in (("layers", LINEARS), ("head", HEAD)):
        for kind, pack, matmul in formats:
            ours_s = peer_s = num_bytes = flops = 0.0
            for out_features, in_features, count in shapes:
                weight = torch.randn(out_features, in_features)
                packed = pack(weight)
                copies = [pack(weight) for _ in range(CACHE_BYTES // packed.nbytes + 1)]
                x = torch.randn(rows, in_features)
                ours_s += count * best([partial(matmul, x, w) for w in copies], seconds)
                peers = [weight.clone() for _ in range(CACHE_BYTES // weight.nbytes + 1)]
                peer_s += count * best([partial(functional.linear, x, w) for w in peers], seconds)
                num_bytes += count * packed.nbytes
                flops += count * 2 * rows * weight.numel()
            yield Line(
                name=f"{kind} {name}, {rows} rows",
                ours_s=ours_s,
                bytes_read=num_bytes,
                flops=flops,
                peer="fp32 linear",
                peer_s=peer_s,
            )


def attention_lines(sequences: int, context: int, queries: int, seconds: float) -> Iterator[Line]:
    """`queries` last tokens of each sequence attend to `context` tokens."""
    blocks_each = context // 16
    caches = allocate_kv_cache(num_blocks=sequences * blocks_each, layers=LAYERS, kv_heads=KV_HEADS, head_dim=HEAD_DIM)
    for cache in caches:
        cache.keys.normal_()
        cache.values.normal_()
    rows = sequences * queries
    positions = torch.arange(context - queries, context, dtype=torch.int32).repeat(sequences)
    of_row = torch.arange(sequences, dtype=torch.int32).repeat_interleave(queries)
    tables = torch.arange(sequences * blocks_each, dtype=torch.int32).view(sequences, blocks_each)
    q, qkv = torch.randn(rows, HEADS, HEAD_DIM), torch.randn(rows, QKV)
    slots = (of_row * context + positions).long()
    rope = rope_tables(HEAD_DIM, context)
    keys, values = torch.randn(2, sequences, KV_HEADS, context, HEAD_DIM)
    queries_of = q.view(sequences, queries, HEADS, HEAD_DIM).transpose(1, 2)

    def attend(cache: LayerCache) -> Tensor:
        return paged_attention(q, cache, tables, of_row, positions)

    def write(cache: LayerCache) -> Tensor:
        return rotary_kv_write(qkv, positions.long(), slots, rope, cache)

    def peer() -> Tensor:
        return functional.scaled_dot_product_attention(
            queries_of, keys, values, is_causal=queries == context, enable_gqa=True
        )

    reads = float((positions + 1).sum())
    kv_bytes = LAYERS * sequences * context * 2 * KV_HEADS * HEAD_DIM * 2
    name = f"{sequences} x {queries} of {context}"
    yield Line(
        name=f"attention, {name}",
        ours_s=LAYERS * best([partial(attend, c) for c in caches], seconds),
        bytes_read=kv_bytes,
        flops=LAYERS * 4 * HEADS * HEAD_DIM * reads,
        peer="fp32 sdpa",
        peer_s=LAYERS * best([peer], seconds),
    )
    yield Line(
        name=f"rotary and cache write, {name}",
        ours_s=LAYERS * best([partial(write, c) for c in caches], seconds),
        bytes_read=LAYERS * qkv.nbytes,
        flops=0,
        peer="",
        peer_s=0,
    )


def row_lines(rows: int, seconds: float) -> Iterator[Line]:
    x, residual, weight = torch.randn(rows, HIDDEN), torch.zeros(rows, HIDDEN), torch.randn(HIDDEN)
    gate_up = torch.randn(rows, 2 * FFN)
    yield Line(
        name=f"rms_norm with residual, {rows} rows",
        ours_s=2 * LAYERS * best([lambda: rms_norm(x, weight, 1e-5, residual)], seconds),
        bytes_read=2 * LAYERS * 2 * x.nbytes,
        flops=0,
        peer="add, rms_norm",
        peer_s=2 * LAYERS * best([lambda: functional.rms_norm(residual.add_(x), (HIDDEN,), weight)], seconds),
    )
    yield Line(
        name=f"silu_mul, {rows} rows",
        ours_s=LAYERS * best([lambda: silu_mul(gate_up)], seconds),
        bytes_read=LAYERS * gate_up.nbytes,
        flops=0,
        peer="silu * up",
        peer_s=LAYERS * best([lambda: functional.silu(gate_up[:, :FFN]) * gate_up[:, FFN:]], seconds),
    )


def sampling_lines(rows: int, seconds: float) -> Iterator[Line]:
    logits = 3 * torch.randn(rows, VOCAB)
    peers: dict[str, Call] = {
        "argmax": lambda: logits.argmax(-1),
        "multinomial": lambda: torch.multinomial(logits.softmax(-1), 1),
        "sort": lambda: logits.sort(-1),
    }
    for name, settings, peer in (
        ("greedy", {"temperature": 0.0}, "argmax"),
        ("temperature", {"temperature": 0.8}, "multinomial"),
        ("top_p", {"temperature": 0.8, "top_p": 0.9}, "sort"),
        ("top_k", {"temperature": 0.8, "top_k": 50}, "sort"),
    ):
        batch = batch_of_settings(rows, **settings)
        yield Line(
            name=f"sample {name}, {rows} rows",
            ours_s=best([partial(sample, logits, batch)], seconds),
            bytes_read=logits.nbytes,
            flops=0,
            peer=peer,
            peer_s=best([peers[peer]], seconds),
        )


def lines(seconds: float) -> Iterator[Line]:
    for rows in (1, 8, 32, 256):
        yield from linear_lines(rows, seconds)
    yield from attention_lines(1, 256, 1, seconds)
    yield from attention_lines(32, 256, 1, seconds)
    yield from attention_lines(1, 4096, 1, seconds)
    yield from attention_lines(1, 512, 512, seconds)
    for rows in (1, 32):
        yield from row_lines(rows, seconds)
        yield from sampling_lines(rows, seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=0.3, help="of measuring, for each operation and shape")
    options = parser.parse_args()
    threads.set_num_threads(options.threads)
    torch.set_num_threads(options.threads)
    machine = measure_machine(4 * options.seconds)
    print(
        f"{options.threads} thread(s): reads {machine.bytes_per_s / 1e9:.1f} GB/s, "
        f"sgemm {machine.flops_per_s / 1e9:.0f} GFLOP/s; milliseconds a step of {LAYERS} layers"
    )
    print(f"{'':42}{'ours':>9}{'bound':>9}{'of bound':>10}{'torch':>10}")
    for line in lines(options.seconds):
        bound_s = max(line.bytes_read / machine.bytes_per_s, line.flops / machine.flops_per_s)
        peer = f"{1e3 * line.peer_s:10.3f}  {line.peer}" if line.peer else ""
        share = bound_s / line.ours_s
        print(f"{line.name:42}{1e3 * line.ours_s:9.3f}{1e3 * bound_s:9.3f}{share:10.0%}{peer}", flush=True)


if __name__ == "__main__":
    main()
