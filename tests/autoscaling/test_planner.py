"""allot: shares that pack, capacities to the block, and what is refused with the arithmetic."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import msgspec
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from autoscaling.planner import Placement, allot, slice_of, token_budget
from cluster.accelerators import Accelerator, accelerator_named
from cluster.config import FleetConfig
from cluster.cost_model import CostModel
from cluster.engine_spec import EngineSpec
from cluster.errors import UserError
from cluster.kv_capacity import kv_capacity
from cluster.model_config import shape_of
from cluster.model_shape import ModelShape
from tests.autoscaling.conftest import LLAMA

HOST = Accelerator(
    name="cpu-2",
    kind="cpu",
    memory_bytes=16 * 2**30,
    bandwidth_bytes_per_s=22e9,
    flops={"fp32": 86e9, "bf16": 86e9, "int8": 150e9},
    price_per_hour=0.08,
    cores=2,
)
SHAPE = shape_of("embedded:smollm2-135m")


def config_of(text: str = "") -> FleetConfig:
    return FleetConfig.of({"model": {"source": "embedded:smollm2-135m"}} | (yaml.safe_load(text) or {}))


def placed(text: str = "", host: Accelerator = HOST, **arguments: object) -> Placement:
    return allot(config_of(text), SHAPE, host, "/models/smollm2", **arguments)  # type: ignore[arg-type]


def test_the_built_in_fleet_on_two_cores() -> None:
    placement = placed()
    assert {name: [spec.replica_id for spec in specs] for name, specs in placement.specs.items()} == {
        "bf16": ["bf16-0"],
        "int8": ["int8-0"],
        "nf4": ["nf4-0"],
    }
    for allotment in placement.allotments:
        spec = allotment.spec
        assert (spec.num_threads, spec.device, spec.checkpoint) == (1, "cpu", "/models/smollm2")
        assert spec.kv_capacity_tokens == allotment.capacity.tokens
        assert spec.kv_capacity_tokens % spec.block_size == 0
        assert spec.token_budget > spec.max_sequences
        assert spec.share == 0.5
    assert placement.slice.memory_share == Fraction(1, 3)
    assert placement.slice.arithmetic == "3 replicas on 2 cores: 1 thread(s) and 1/3 of the memory each"
    assert placement.limits.max_sequences == 64


@settings(deadline=None, max_examples=30)
@given(cores=st.integers(1, 64), gib=st.integers(16, 256), counts=st.lists(st.integers(0, 3), min_size=3, max_size=3))
def test_what_is_allotted_packs(cores: int, gib: int, counts: list[int]) -> None:
    if not sum(counts):
        return
    host = replace(HOST, cores=cores, memory_bytes=gib * 2**30)
    placement = placed(host=host, replicas=dict(zip(("bf16", "int8", "nf4"), counts, strict=True)))
    specs = [allotment.spec for allotment in placement.allotments]
    assert len(specs) == sum(counts)
    assert len({spec.replica_id for spec in specs}) == len(specs)
    assert sum(spec.num_threads for spec in specs) <= max(cores, len(specs))
    held = sum(a.capacity.kv_bytes + a.spec.variant.resident_bytes(SHAPE, "cpu") for a in placement.allotments)
    assert held <= host.memory_bytes / 2


def test_a_spec_crosses_a_process_boundary() -> None:
    spec = placed().allotments[0].spec
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(spec), type=EngineSpec) == spec


def test_one_variant_alone_has_the_machine_to_itself() -> None:
    [allotment] = placed(replicas={"int8": 1}).allotments
    assert (allotment.spec.num_threads, allotment.spec.share) == (2, 1.0)


def test_a_variant_with_a_minimum_of_none_is_not_started_but_has_its_share() -> None:
    placement = placed("autoscaling: {replicas: {nf4: {min: 0}}}")
    assert set(placement.specs) == {"bf16", "int8"}
    assert placement.slice.replicas == 3


def test_figures_of_the_file_are_taken_as_they_are() -> None:
    placement = placed(
        "engine: {kv_capacity_tokens: 16384, token_budget: 256, max_sequences: 8, kv_dtype: fp32, block_size: 32}"
    )
    spec = placement.allotments[0].spec
    assert (spec.kv_capacity_tokens, spec.token_budget, spec.max_sequences) == (16384, 256, 8)
    assert (spec.kv_dtype, spec.block_size) == ("fp32", 32)


def test_a_model_with_fewer_positions_than_the_default_context() -> None:
    short = replace(SHAPE, max_positions=2048)
    assert allot(config_of(), short, HOST, "x").allotments[0].spec.max_context == 2048


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("engine: {num_threads: 2}", r"num_threads: 3 replicas x 2 threads = 6 on 2 cores"),
        ("engine: {max_context: 9000}", r"max_context: 9000 is beyond the 8192 positions"),
        ("engine: {token_budget: 64}", r"token_budget: 64 leaves no room for prompts beside 64 decodes"),
        ("engine: {kv_capacity_tokens: 999999}", r"kv_capacity_tokens: 999999 do not fit for bf16: .* GB"),
        ("autoscaling: {replicas: {bf16: {max: 99}}}", r"max_context: one sequence of 4096 tokens does not fit"),
        (
            "autoscaling: {replicas: {bf16: {min: 0}, int8: {min: 0}, nf4: {min: 0}}}",
            r"every min is 0, so nothing would serve",
        ),
    ],
)
def test_what_does_not_pack_is_refused(text: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        placed(text)


def test_hardware_that_the_engine_does_not_run_on_is_for_planning_only() -> None:
    h100 = accelerator_named("H100-80G")
    with pytest.raises(UserError, match="accelerator: H100-80G can be planned for"):
        placed(host=h100)
    part = slice_of(config_of(), h100, 3)
    assert (part.memory_share, part.compute_share) == (1, 1.0)


def test_a_method_that_the_hardware_does_not_run_is_named() -> None:
    with pytest.raises(UserError, match=r"variants.fast.method: fp8 does not run on"):
        placed("variants: {fast: {method: fp8}}")


def test_replicas_share_gpus_only_where_there_are_too_few() -> None:
    h100 = accelerator_named("H100-80G")
    shared = slice_of(config_of("autoscaling: {budget: {gpus: 2}}"), h100, 3)
    assert (shared.memory_share, shared.compute_share) == (Fraction(1, 2), 0.5)
    assert slice_of(config_of(), replace(h100, count=1), 3).memory_share == Fraction(1, 3)
    assert slice_of(config_of("autoscaling: {budget: {gpus: 2}}"), h100, 2).memory_share == 1
    with pytest.raises(UserError, match=r"replicas_per_gpu: 3 replicas, 1 to a GPU, do not fit into 2"):
        slice_of(config_of("autoscaling: {budget: {gpus: 2, replicas_per_gpu: 1}}"), h100, 3)


def test_the_token_budget_keeps_a_mixed_step_short_on_faster_hosts() -> None:
    fast = replace(HOST, cores=64, flops={name: 40 * value for name, value in HOST.flops.items()})
    spec = placed(host=fast).allotments[0].spec
    assert spec.token_budget > 128
    model = CostModel(SHAPE, spec.variant, fast, share=spec.share)
    assert model.prefill_s(spec.token_budget) <= 0.25


def test_a_full_step_on_a_gpu_leaves_room_within_the_tightest_tpot() -> None:
    h100 = replace(accelerator_named("H100-80G"), count=1)
    llama = ModelShape.from_hf_config(LLAMA, 16384)

    def budget(classes: str) -> int:
        config = config_of(f"slo_classes: {{{classes}}}\ndefault_class: chat")
        return token_budget(config, llama, h100, slice_of(config, h100, 1))

    assert budget("chat: {tpot_ms: 200}") == 2048
    assert budget("chat: {tpot_ms: 40}") == 1024
    assert budget("chat: {tpot_ms: 40}, slow: {tpot_ms: 300}") == 1024
    assert budget("chat: {tpot_ms: 12}") == 256 + 64, "the sequences that may run, and room for a prompt's piece"
    assert budget("chat: {ttft_ms: 300}") == 2048


def test_the_capacity_of_the_spec_is_the_formulas() -> None:
    for allotment in placed().allotments:
        again = kv_capacity(SHAPE, allotment.spec.variant, HOST, _plan_of(allotment.spec))
        assert again.tokens == allotment.spec.kv_capacity_tokens


def _plan_of(spec: EngineSpec):  # type: ignore[no-untyped-def]
    from autoscaling.planner import memory_plan

    return memory_plan(config_of(), SHAPE, HOST, slice_of(config_of(), HOST, 3))
