"""Fused decode attention against float64: splits, padding rows, replays, every head size, group and block size."""

from itertools import pairwise

import pytest
import torch

from kernels.gpu.decode_attention import (
    DecodeConfig,
    allocate_split_plan,
    decode_attention,
    decode_attention_reference,
    plan_splits,
)
from kernels.rotary import rope_tables
from tests.kernels.gpu.paged import paged

BF16 = 1e-2
FP32 = 1e-5
SMALL = {"tile_tokens": 32, "min_chunk_tokens": 32}


def check(
    device,
    relative_error,
    lengths,
    *,
    heads,
    kv_heads,
    head_dim,
    block_size=16,
    dtype=torch.bfloat16,
    normed=False,
    config=None,
    steps=1,
):
    cache = paged(lengths, kv_heads=kv_heads, head_dim=head_dim, block_size=block_size, dtype=dtype, device=device)
    expected = cache.copy_of_kv()
    tables = rope_tables(head_dim, max(lengths) + 1, device=device)
    norms = {name: torch.rand(head_dim, device=device) + 0.5 if normed else None for name in ("q_norm", "k_norm")}
    seq_lens = torch.tensor(lengths, dtype=torch.int32, device=device)
    plan = allocate_split_plan(
        max_batch=len(lengths) + 1,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        dtype=dtype,
        device=device,
        config=config,
    )
    plan_splits(seq_lens, cache.rows, plan)
    bound = BF16 if dtype == torch.bfloat16 else FP32
    for _ in range(steps):
        qkv = torch.randn(len(lengths), (heads + 2 * kv_heads) * head_dim, device=device).to(dtype)
        out = torch.full((len(lengths), heads * head_dim), torch.nan, dtype=dtype, device=device)
        assert decode_attention(qkv, cache.kv, cache.block_tables, plan, tables, **norms, out=out) is out
        reference = decode_attention_reference(qkv, expected, cache.block_tables, cache.rows, seq_lens, tables, **norms)
        assert relative_error(out, reference) < bound
        assert relative_error(cache.kv.keys, expected.keys) < bound
        assert torch.equal(cache.kv.values, expected.values)
        assert not plan.arrivals.any()
        padding = (seq_lens == 0).to(out.device)
        assert not out[padding].any()
    return plan


@pytest.mark.parametrize("combine_in_launch", [True, False])
def test_rows_in_several_runs_and_in_one(device, relative_error, combine_in_launch):
    config = DecodeConfig(**SMALL, combine_in_launch=combine_in_launch)
    plan = check(device, relative_error, [129, 0, 1, 70], heads=4, kv_heads=2, head_dim=64, config=config, steps=2)
    assert int(plan.num_items) > 4


@pytest.mark.parametrize(
    ("lengths", "heads", "kv_heads", "head_dim", "block_size", "dtype", "normed"),
    [
        ([200], 9, 3, 64, 16, torch.float32, True),
        ([100, 33, 32], 3, 3, 96, 32, torch.bfloat16, True),
        ([65, 17], 16, 1, 128, 8, torch.float32, False),
        ([1, 2, 3, 16, 17, 15, 31, 32, 33, 0, 0, 1, 5, 4, 3, 2, 1], 1, 1, 64, 16, torch.float32, False),
        ([90], 32, 1, 64, 16, torch.bfloat16, False),
        ([40], 32, 8, 128, 16, torch.bfloat16, True),
    ],
)
def test_shapes(device, relative_error, lengths, heads, kv_heads, head_dim, block_size, dtype, normed):
    check(
        device,
        relative_error,
        lengths,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        block_size=block_size,
        dtype=dtype,
        normed=normed,
        config=DecodeConfig(**SMALL),
    )


@pytest.mark.parametrize("lengths", [[1], [0, 0], [5000], [100] * 17, [1, 70000, 300], [8000, 100, 0, 900, 31]])
@pytest.mark.parametrize("kv_heads", [1, 8])
def test_plan_covers_each_row_once_within_its_bound(device, lengths, kv_heads):
    plan = allocate_split_plan(
        max_batch=20, heads=kv_heads, kv_heads=kv_heads, head_dim=64, dtype=torch.bfloat16, device=device
    )
    rows = torch.randperm(len(lengths)).int()
    plan_splits(torch.tensor(lengths, dtype=torch.int32, device=device), rows.to(device), plan)
    items = plan.items[: int(plan.num_items)].tolist()
    assert len(items) <= plan.max_items(len(lengths))
    tile = plan.config(len(lengths)).tile_tokens
    tiles = [max(1, -(-(item[3] - item[2]) // tile)) for item in items if item[6] == 0]
    assert tiles == sorted(tiles, reverse=True), "what starts last is short"
    expected = iter(sorted(items, key=lambda item: (item[0], item[6])))
    assert all(one[6] == 0 or one[0] == before[0] for before, one in pairwise(items))
    for row, length in enumerate(lengths):
        first = next(expected)
        runs = [first] + [next(expected) for _ in range(first[5] - 1)]
        bounds = [run[2] for run in runs] + [runs[-1][3]]
        assert [run[0] for run in runs] == [row] * len(runs)
        assert [run[1] for run in runs] == [int(rows[row])] * len(runs)
        assert [run[3] for run in runs] == bounds[1:]
        assert bounds[0] == 0
        assert bounds[-1] == max(length - 1, 0)
        assert all(run[4] == length - 1 for run in runs)
        assert [run[6] for run in runs] == list(range(first[5]))
        assert len(runs) == 1 or all(run[3] > run[2] for run in runs)


def test_refuses_what_does_not_fit(device):
    shape = {"head_dim": 64, "dtype": torch.bfloat16, "device": device}
    with pytest.raises(ValueError, match="groups of 1 to 32"):
        allocate_split_plan(max_batch=1, heads=33, kv_heads=1, **shape)
    with pytest.raises(ValueError, match="whole tiles"):
        DecodeConfig(tile_tokens=64, min_chunk_tokens=96)
    plan = allocate_split_plan(max_batch=1, heads=4, kv_heads=2, **shape)
    two = torch.ones(2, dtype=torch.int32, device=device)
    with pytest.raises(ValueError, match="2 rows"):
        plan_splits(two, two, plan)


@pytest.mark.gpu
@pytest.mark.parametrize(("heads", "kv_heads", "head_dim"), [(32, 8, 128), (32, 32, 128), (32, 1, 128), (9, 3, 64)])
@pytest.mark.parametrize(
    "config",
    [
        None,
        DecodeConfig(combine_in_launch=False),
        DecodeConfig(tile_tokens=128, num_warps=8, min_chunk_tokens=1024),
        DecodeConfig(num_warps=2, num_stages=4),
    ],
)
def test_long_and_mixed_contexts(device, relative_error, heads, kv_heads, head_dim, config):
    lengths = [8191, 1, 0, 640, 4097, 100, 33, 2048]
    shape = {"heads": heads, "kv_heads": kv_heads, "head_dim": head_dim, "config": config}
    check(device, relative_error, lengths, **shape, steps=3)
    check(device, relative_error, [640], **shape, steps=3)


@pytest.mark.gpu
def test_replays_in_a_graph_with_other_lengths(device, relative_error):
    cache = paged([3000, 900, 64], kv_heads=8, head_dim=128, block_size=16, dtype=torch.bfloat16, device=device)
    tables = rope_tables(128, 4096, device=device)
    plan = allocate_split_plan(max_batch=3, heads=32, kv_heads=8, head_dim=128, dtype=torch.bfloat16, device=device)
    seq_lens = torch.tensor([3, 2, 1], dtype=torch.int32, device=device)
    qkv = torch.randn(3, 48 * 128, device=device).to(torch.bfloat16)
    out = torch.empty(3, 32 * 128, dtype=torch.bfloat16, device=device)

    def step():
        plan_splits(seq_lens, cache.rows, plan)
        out.zero_()  # the plan is read before the wait: a kernel lies between, as in an engine's step
        decode_attention(qkv, cache.kv, cache.block_tables, plan, tables, out=out)
        decode_attention(qkv, cache.kv, cache.block_tables, plan, tables, out=out)

    step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    for lengths in ([2999, 900, 64], [5, 0, 1], [1000, 899, 33]):
        seq_lens.copy_(torch.tensor(lengths, dtype=torch.int32))
        qkv.normal_()
        out.fill_(torch.nan)
        graph.replay()
        expected = cache.copy_of_kv()
        reference = decode_attention_reference(qkv, expected, cache.block_tables, cache.rows, seq_lens, tables)
        assert relative_error(out, reference) < BF16
