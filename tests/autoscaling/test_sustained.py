"""Sustained rates: the steady state's own equations, the bound that is named, and monotony."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoscaling.sustained import Mix, ReplicaCapability, sustained
from cluster.cost_model import StepShape

CHAT = Mix(prompt_tokens=1155, output_tokens=211)


def test_littles_law_and_the_shares_of_one_accelerator_add_up(replicas: dict[str, ReplicaCapability]) -> None:
    for replica in replicas.values():
        found = sustained(replica, CHAT)
        # Lengths are rounded to steps of 5 %.
        assert found.batch == pytest.approx(found.rate_per_s * CHAT.output_tokens * found.tpot_s, rel=0.03)
        shares = CHAT.prompt_tokens / found.prefill_tokens_per_s + CHAT.output_tokens / found.decode_tokens_per_s
        assert found.rate_per_s * shares == pytest.approx(1.0, rel=0.03)


def test_without_a_limit_a_large_batch_is_bound_by_the_rate(replicas: dict[str, ReplicaCapability]) -> None:
    assert sustained(replicas["bf16"], CHAT).bound == "rate"


def test_little_memory_is_bound_by_kv(replicas: dict[str, ReplicaCapability]) -> None:
    small = replace(replicas["bf16"], kv_capacity_tokens=20_000)
    found = sustained(small, CHAT)
    assert found.bound == "KV"
    held_tokens = 1155 + 211 / 2 + 8
    assert found.batch == pytest.approx(20_000 / held_tokens, abs=1)


def test_memory_for_none_holds_nothing(replicas: dict[str, ReplicaCapability]) -> None:
    found = sustained(replace(replicas["bf16"], kv_capacity_tokens=500), CHAT)
    assert (found.rate_per_s, found.bound) == (0.0, "KV")


def test_few_places_are_bound_by_sequences(replicas: dict[str, ReplicaCapability]) -> None:
    replica = replicas["bf16"]
    few = replace(replica, limits=replace(replica.limits, max_sequences=4))
    assert sustained(few, CHAT).bound == "sequences"


def test_a_tpot_limit_is_kept_and_named(replicas: dict[str, ReplicaCapability]) -> None:
    found = sustained(replicas["bf16"], replace(CHAT, tpot_s=0.010))
    assert found.bound == "TPOT"
    assert found.tpot_s <= 0.010
    step_s = replicas["bf16"].model.step_s(StepShape(decode_sequences=found.batch + 1, kv_tokens=found.batch * 1260))
    assert step_s < 0.010, "the prompts' part of the step's time ended it"


def test_a_tpot_limit_below_one_step_holds_nothing(replicas: dict[str, ReplicaCapability]) -> None:
    found = sustained(replicas["bf16"], replace(CHAT, tpot_s=0.004))
    assert (found.rate_per_s, found.bound) == (0.0, "TPOT")


def test_a_ttft_limit_binds_before_the_rate_does(replicas: dict[str, ReplicaCapability]) -> None:
    loose, tight = (sustained(replicas["bf16"], replace(CHAT, ttft_s=limit)) for limit in (2.0, 0.15))
    assert tight.bound == "TTFT"
    assert tight.rate_per_s < loose.rate_per_s


def test_fewer_bits_hold_more_within_a_tight_tpot(replicas: dict[str, ReplicaCapability]) -> None:
    tight = replace(CHAT, tpot_s=0.008)
    rates = {name: sustained(replica, tight).rate_per_s for name, replica in replicas.items()}
    assert rates["int4"] > rates["bf16"]


lengths = st.floats(min_value=16, max_value=8000)


@settings(max_examples=60, deadline=None)
@given(prompt=lengths, output=st.floats(min_value=2, max_value=2000), factor=st.floats(min_value=1.1, max_value=4))
def test_longer_requests_and_tighter_limits_never_raise_the_rate(
    replicas: dict[str, ReplicaCapability], prompt: float, output: float, factor: float
) -> None:
    replica = replicas["bf16"]
    free = Mix(prompt_tokens=prompt, output_tokens=output)
    rate = sustained(replica, free).rate_per_s
    assert sustained(replica, replace(free, output_tokens=output * factor)).rate_per_s <= rate * 1.06
    assert sustained(replica, replace(free, prompt_tokens=prompt * factor)).rate_per_s <= rate * 1.06
    mix = replace(free, tpot_s=0.05, ttft_s=2.0)
    rate = sustained(replica, mix).rate_per_s
    assert sustained(replica, replace(mix, tpot_s=0.05 / factor)).rate_per_s <= rate * (1 + 1e-9)
    assert sustained(replica, replace(mix, ttft_s=2.0 / factor)).rate_per_s <= rate * (1 + 1e-9)


def test_prompts_that_seldom_meet_keep_a_ttft_limit(replicas: dict[str, ReplicaCapability]) -> None:
    """At the rate of one sequence after another they meet too often; below it the limit can still be kept."""
    slow = replace(replicas["bf16"], step_time_ratio=20.0)
    found = [sustained(slow, replace(CHAT, ttft_s=ttft_s)) for ttft_s in (0.2, 0.5, 0.6, 0.7, 0.8, 0.9, 1.5, 3.0)]
    rates = [each.rate_per_s for each in found]
    assert rates == sorted(rates)
    assert rates[0] == 0
    alone = [each for each in found if each.batch == 1 and each.rate_per_s]
    assert len({each.rate_per_s for each in alone}) >= 2
    assert {each.bound for each in alone} == {"TTFT"}
