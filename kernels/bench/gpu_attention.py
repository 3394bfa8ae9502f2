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
    DecodeConfig,
    allocate_split_plan,
    decode_attention,
    plan_splits,
)
from kernels.gpu.kv_cache import PagedKv, allocate_paged_kv
from kernels.gpu.prefill_attention import PrefillConfig, prefill_attention
from kernels.gpu.rotary import rotary_kv_write
from kernels.rotary import rope_tables

HEADS, KV_HEADS, HEAD_DIM, BLOCK_SIZE = 32, 8, 128, 16
ROTATED_BYTES = 128 * 1024 * 1024
"""What a pass over the layers reads at least; an H100's L2 holds 50 MB."""
PEER_BYTES = 600 * 1024 * 1024

DECODE = DecodeConfig()
DECODE_VARIANTS = {
    "4 stages, 2 programs a SM": replace(DECODE, num_stages=4, programs_per_sm=2),
    "tile 128, 2 stages": replace(DECODE, tile_tokens=128, num_stages=2),
    "2 warps": replace(DECODE, num_warps=2),
    "2 programs a SM": replace(DECODE, programs_per_sm=2),
    "6 programs a SM": replace(DECODE, programs_per_sm=6),
    "chunks from 64": replace(DECODE, min_chunk_tokens=64),
    "chunks from 256": replace(DECODE, min_chunk_tokens=256),
    "second launch combines": replace(DECODE, combine_in_launch=False),
    "no prefetch": replace(DECODE, prefetch=False),
}
PREFILL_VARIANTS = {
    "128 x 64": PrefillConfig(),
    "128 x 64, 2 stages, 128 registers": PrefillConfig(num_stages=2, max_registers=128),
    "128 x 128, 2 stages": PrefillConfig(tile_tokens=128, num_stages=2),
    "64 x 64, 4 warps": PrefillConfig(rows=64, num_warps=4),
}


def cases() -> Iterator[Case]:
    mixed = torch.linspace(100, 8000, 32).int()[torch.randperm(32)].tolist()
    for lengths, shape in (
        ([640], "1 x 640"),
        ([8192], "1 x 8192"),
        ([1024] * 16, "16 x 1024"),
        ([8192] * 16, "16 x 8192"),
        ([1024] * 64, "64 x 1024"),
        ([700] * 256, "256 x 700"),
        (mixed, "32 x 100..8000"),
        ([32768] * 8, "8 x 32768"),
    ):
        variants = DECODE_VARIANTS if shape in ("1 x 640", "16 x 1024", "32 x 100..8000") else {}
        yield from _decode(lengths, shape, HEADS, KV_HEADS, variants)
    yield from _decode([2048] * 16, "16 x 2048, 32/32 heads", 32, 32, {})
    yield from _decode([2048] * 16, "16 x 2048, 32/1 heads", 32, 1, {})
    yield from _plan(mixed)
    for sequences, chunk, context in ((8, 1024, 0), (1, 2048, 6144), (32, 256, 0)):
        yield from _prefill(sequences, chunk, context)
    yield _rotary(8192)


def _decode(
    lengths: list[int], shape: str, heads: int, kv_heads: int, variants: dict[str, DecodeConfig]
) -> Iterator[Case]:
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
    for name, config in {"": DECODE, **variants}.items():
        plan = allocate_split_plan(
            max_batch=len(lengths),
            heads=heads,
            kv_heads=kv_heads,
            head_dim=HEAD_DIM,
            dtype=torch.bfloat16,
            device="cuda",
            config=config,
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


def _prefill(sequences: int, chunk: int, context: int) -> Iterator[Case]:
    length = chunk + context
    tokens = sequences * chunk
    cached = sequences * length * KV_HEADS * HEAD_DIM * 2 * 2
    layers, block_tables, rows = _paged([length] * sequences, KV_HEADS, copies=-(-ROTATED_BYTES // cached))
    q = torch.randn(tokens, HEADS, HEAD_DIM, device="cuda").bfloat16()
    starts = torch.arange(0, tokens + 1, chunk, dtype=torch.int32, device="cuda")
    contexts = torch.full((sequences,), context, dtype=torch.int32, device="cuda")
    peer_q = q.unflatten(0, (sequences, chunk)).transpose(1, 2).contiguous()
    peer_calls = []
    for layer in layers:
        keys, values = _contiguous(layer, block_tables, [length] * sequences)
        if context:
            keys, values = (x.repeat_interleave(HEADS // KV_HEADS, dim=1) for x in (keys, values))
            bias = causal_lower_right(chunk, length)
            peer_calls.append(partial(scaled_dot_product_attention, peer_q, keys, values, attn_mask=bias))
        else:
            peer_calls.append(
                partial(scaled_dot_product_attention, peer_q, keys, values, is_causal=True, enable_gqa=True)
            )
    pairs = sequences * (chunk * context + chunk * (chunk + 1) // 2)
    for name, config in PREFILL_VARIANTS.items():
        out = torch.empty_like(q)
        yield Case(
            operation=f"prefill attention: {name}",
            shape=f"{sequences} x {chunk} after {context}",
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
            bytes=cached + 2 * q.nbytes,
            flops=4 * HEADS * HEAD_DIM * pairs,
            peer="SDPA, contiguous",
            peer_calls=peer_calls,
        )


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
