"""Attention over the paged cache on Llama-3.1-8B's shapes, decode and prefill, and rotary; peers are torch's own.

A decode case's bytes are the keys and values it reads. The peers get contiguous keys and values, which flatters them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor
from torch.nn.attention.bias import causal_lower_right
from torch.nn.functional import scaled_dot_product_attention

from kernels.bench.case import Case
from kernels.gpu.decode_attention import (
    allocate_split_plan,
    decode_attention,
    default_config,
    plan_splits,
)
from kernels.gpu.gemv import gemv
from kernels.gpu.kv_cache import PagedKv, allocate_paged_kv
from kernels.gpu.prefill_attention import PrefillConfig, prefill_attention, prompt_attention_without_context
from kernels.gpu.rotary import rotary_kv_write
from kernels.rotary import rope_tables

HEADS, KV_HEADS, HEAD_DIM, BLOCK_SIZE = 32, 8, 128, 16
ROTATED_BYTES = 128 * 1024 * 1024
"""What a pass over the layers reads at least; an H100's L2 holds 50 MB."""
PEER_BYTES = 600 * 1024 * 1024

ONE = default_config(HEAD_DIM, torch.bfloat16, "one")
FEW = default_config(HEAD_DIM, torch.bfloat16, "few")
MANY = default_config(HEAD_DIM, torch.bfloat16)
CONFIGS = {"one": ONE, "few": FEW, "many": MANY, "many, 6 a SM": replace(MANY, programs_per_sm=6)}
PREFILL_VARIANTS = {
    "128 x 64": PrefillConfig(),
    "128 x 32": PrefillConfig(tile_tokens=32),
    "128 x 64, one head": PrefillConfig(whole_group=False),
    "128 x 64, longest first": PrefillConfig(longest_first=True),
    "64 x 64, 4 warps": PrefillConfig(rows=64, num_warps=4, max_registers=None),
}


def cases() -> Iterator[Case]:
    mixed = torch.linspace(100, 8000, 32).int()[torch.randperm(32)].tolist()
    uneven = torch.randint(100, 2000, (256,)).tolist()
    for lengths, shape, variants in (
        ([640], "1 x 640", ["few"]),
        ([8192], "1 x 8192", ["few"]),
        ([1024] * 16, "16 x 1024", ["one", "many"]),
        ([8192] * 16, "16 x 8192", []),
        ([1024] * 64, "64 x 1024", ["few"]),
        ([700] * 256, "256 x 700", []),
        (uneven, "256 x 100..2000", ["many, 6 a SM"]),
        (mixed, "32 x 100..8000", ["few", "many, 6 a SM"]),
        ([32768] * 8, "8 x 32768", []),
    ):
        yield from _decode(lengths, shape, HEADS, KV_HEADS, variants)
    yield from _decode([2048] * 16, "16 x 2048, 32/32 heads", 32, 32, [])
    yield from _decode([2048] * 16, "16 x 2048, 32/1 heads", 32, 1, [])
    for dtype in (torch.bfloat16, torch.int8):
        yield from _between_products(dtype)
    yield from _plan(mixed)
    for sequences, chunk, context in ((8, 1024, 0), (1, 2048, 6144), (32, 256, 0)):
        yield from _prefill([chunk] * sequences, context, f"{sequences} x {chunk} after {context}", PREFILL_VARIANTS)
    ragged = torch.linspace(100, 1024, 14).int()[torch.randperm(14)].tolist()
    yield from _prefill(ragged, 0, "14 x 100..1024 after 0", {"128 x 64": PrefillConfig()})
    yield _rotary(8192)


def _decode(lengths: list[int], shape: str, heads: int, kv_heads: int, variants: Sequence[str]) -> Iterator[Case]:
    width = (heads + 2 * kv_heads) * HEAD_DIM
    read = sum(lengths) * kv_heads * HEAD_DIM * 2 * 2
    layers, block_tables, rows = _paged(lengths, kv_heads, copies=-(-ROTATED_BYTES // read))
    tables = rope_tables(HEAD_DIM, max(lengths), theta=500000.0, device="cuda")
    qkv = torch.randn(len(lengths), width, device="cuda").bfloat16()
    seq_lens = torch.tensor(lengths, dtype=torch.int32, device="cuda")
    peer_calls: Sequence[partial[Tensor]] = ()
    if len(set(lengths)) == 1 and read <= PEER_BYTES:
        q = torch.randn(len(lengths), heads, 1, HEAD_DIM, device="cuda").bfloat16()
        peer_calls = [
            partial(scaled_dot_product_attention, q, keys, values, enable_gqa=heads != kv_heads)
            for keys, values in (_contiguous(layer, block_tables, lengths) for layer in layers)
        ]
    for name in ("", *variants):
        plan = allocate_split_plan(
            max_batch=len(lengths),
            heads=heads,
            kv_heads=kv_heads,
            head_dim=HEAD_DIM,
            dtype=torch.bfloat16,
            device="cuda",
            config=CONFIGS.get(name),
        )
        plan_splits(seq_lens, rows, plan)
        out = torch.empty(len(lengths), heads * HEAD_DIM, dtype=torch.bfloat16, device="cuda")
        yield Case(
            operation=f"decode attention{name and ': '}{name}",
            shape=shape,
            calls=[partial(decode_attention, qkv, kv, block_tables, plan, tables, out=out) for kv in layers],
            bytes=read,
            peer="SDPA, contiguous" if peer_calls and not name else "",
            peer_calls=() if name else peer_calls,
        )


def _between_products(dtype: torch.dtype) -> Iterator[Case]:
    """A layer's qkv product, attention of one row of 640 tokens and o product."""
    width, hidden, copies = (HEADS + 2 * KV_HEADS) * HEAD_DIM, HEADS * HEAD_DIM, 4
    layers, block_tables, rows = _paged([640], KV_HEADS, copies=copies)
    tables = rope_tables(HEAD_DIM, 640, theta=500000.0, device="cuda")
    plan = allocate_split_plan(
        max_batch=1, heads=HEADS, kv_heads=KV_HEADS, head_dim=HEAD_DIM, dtype=torch.bfloat16, device="cuda"
    )
    plan_splits(torch.tensor([640], dtype=torch.int32, device="cuda"), rows, plan)
    qkv_weights, o_weights = (
        [
            (0.02 * torch.randn(n, hidden, device="cuda") * (2000 if dtype == torch.int8 else 1)).to(dtype)
            for _ in layers
        ]
        for n in (width, hidden)
    )
    scales = [torch.full((n,), 1e-3, device="cuda") if dtype == torch.int8 else None for n in (width, hidden)]
    x = torch.randn(1, hidden, device="cuda").bfloat16()
    qkv, attended, out = (torch.empty(1, n, dtype=x.dtype, device="cuda") for n in (width, hidden, hidden))

    def layer_calls(layer: PagedKv, w_qkv: Tensor, w_o: Tensor) -> None:
        gemv(x, w_qkv, qkv, scale=scales[0])
        decode_attention(qkv, layer, block_tables, plan, tables, out=attended)
        gemv(attended, w_o, out, scale=scales[1])

    yield Case(
        operation="qkv, attention, o",
        shape=f"1 x 640, {str(dtype).removeprefix('torch.')}",
        calls=[partial(layer_calls, *layer) for layer in zip(layers, qkv_weights, o_weights, strict=True)],
        bytes=qkv_weights[0].nbytes + o_weights[0].nbytes + layers[0].keys.nbytes * 2,
    )


def _plan(lengths: list[int]) -> Iterator[Case]:
    for batch in (1, len(lengths), 256):
        seq_lens = torch.tensor((lengths * batch)[:batch], dtype=torch.int32, device="cuda")
        rows = torch.arange(batch, dtype=torch.int32, device="cuda")
        plan = allocate_split_plan(
            max_batch=batch,
            heads=HEADS,
            kv_heads=KV_HEADS,
            head_dim=HEAD_DIM,
            dtype=torch.bfloat16,
            device="cuda",
        )
        yield Case(
            operation="plan of a step's splits",
            shape=f"{batch} rows",
            calls=[partial(plan_splits, seq_lens, rows, plan)] * 4,
            bytes=8 * batch,
        )


def _prefill(chunks: list[int], context: int, shape: str, variants: dict[str, PrefillConfig]) -> Iterator[Case]:
    sequences, chunk, tokens = len(chunks), max(chunks), sum(chunks)
    lengths = [context + length for length in chunks]
    cached = sum(lengths) * KV_HEADS * HEAD_DIM * 2 * 2
    layers, block_tables, rows = _paged(lengths, KV_HEADS, copies=-(-ROTATED_BYTES // cached))
    q = torch.randn(tokens, HEADS, HEAD_DIM, device="cuda").bfloat16()
    starts = torch.tensor([0, *chunks], device="cuda").cumsum(0).int()
    contexts = torch.full((sequences,), context, dtype=torch.int32, device="cuda")
    case = partial(
        Case,
        shape=shape,
        bytes=cached + 2 * q.nbytes,
        flops=4 * HEADS * HEAD_DIM * sum(n * context + n * (n + 1) // 2 for n in chunks),
    )
    even = len(set(chunks)) == 1
    peer_calls = _sdpa_calls(q, layers, block_tables, sequences, chunk, context) if even else []
    for name, config in variants.items():
        out = torch.empty_like(q)
        yield case(
            operation=f"prefill attention: {name}",
            calls=[
                partial(
                    prefill_attention,
                    q,
                    layer,
                    block_tables,
                    rows,
                    starts,
                    contexts,
                    chunk,
                    out=out,
                    config=config,
                )
                for layer in layers
            ],
            peer="SDPA, contiguous" if even and config == PrefillConfig() else "",
            peer_calls=peer_calls if config == PrefillConfig() else (),
        )
    if not context:
        qkvs = torch.randn(len(layers), tokens, HEADS + 2 * KV_HEADS, HEAD_DIM, device="cuda").bfloat16()
        yield case(
            operation="prefill attention: aten varlen flash",
            calls=[
                partial(prompt_attention_without_context, q, k, v, starts, chunk)
                for _, k, v in (qkv.split([HEADS, KV_HEADS, KV_HEADS], dim=1) for qkv in qkvs)
            ],
        )


def _sdpa_calls(
    q: Tensor, layers: Sequence[PagedKv], block_tables: Tensor, sequences: int, chunk: int, context: int
) -> list[partial[Tensor]]:
    q = q.unflatten(0, (sequences, chunk)).transpose(1, 2).contiguous()
    calls = []
    for layer in layers:
        keys, values = _contiguous(layer, block_tables, [chunk + context] * sequences)
        if context:
            keys, values = (x.repeat_interleave(HEADS // KV_HEADS, dim=1) for x in (keys, values))
            bias = causal_lower_right(chunk, chunk + context)
            calls.append(partial(scaled_dot_product_attention, q, keys, values, attn_mask=bias))
        else:
            calls.append(partial(scaled_dot_product_attention, q, keys, values, is_causal=True, enable_gqa=True))
    return calls


def _rotary(tokens: int) -> Case:
    (kv,), block_tables, _ = _paged([tokens], KV_HEADS, copies=1)
    positions = torch.arange(tokens, dtype=torch.int32, device="cuda")
    slots = block_tables[0, positions // BLOCK_SIZE] * BLOCK_SIZE + positions % BLOCK_SIZE
    tables = rope_tables(HEAD_DIM, tokens, theta=500000.0, device="cuda")
    qkvs = torch.randn(2, tokens, (HEADS + 2 * KV_HEADS) * HEAD_DIM, device="cuda").bfloat16()
    return Case(
        operation="rotary and cache write",
        shape=f"{tokens} tokens",
        calls=[partial(rotary_kv_write, qkv, positions, slots, tables, kv) for qkv in qkvs],
        bytes=2 * qkvs[0].nbytes,
    )


def _paged(lengths: list[int], kv_heads: int, copies: int) -> tuple[list[PagedKv], Tensor, Tensor]:
    """Random layers, their block tables of shuffled blocks, the rows of those."""
    blocks = [-(-length // BLOCK_SIZE) for length in lengths]
    layers = allocate_paged_kv(
        num_blocks=sum(blocks),
        layers=copies,
        kv_heads=kv_heads,
        head_dim=HEAD_DIM,
        block_size=BLOCK_SIZE,
        dtype=torch.bfloat16,
        device="cuda",
    )
    for layer in layers:
        layer.keys.normal_()
        layer.values.normal_()
    tables = torch.zeros(len(lengths), max(blocks), dtype=torch.int32)
    shuffled = torch.randperm(sum(blocks)).int().split(blocks)
    for row, ids in enumerate(shuffled):
        tables[row, : len(ids)] = ids
    return layers, tables.cuda(), torch.arange(len(lengths), dtype=torch.int32, device="cuda")


def _contiguous(kv: PagedKv, block_tables: Tensor, lengths: list[int]) -> tuple[Tensor, Tensor]:
    """Keys and values of sequences of one length, [S, KVH, length, D] each."""
    keys, values = (
        blocks[block_tables.long()].transpose(1, 2).flatten(2, 3)[:, :, : lengths[0]].contiguous()
        for blocks in (kv.keys, kv.values)
    )
    return keys, values
