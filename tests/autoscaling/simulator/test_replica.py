"""SimulatedReplica: many steps at once are the same as each by itself; admission and Load as the engine's."""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace
from math import inf

import pytest

from autoscaling.simulator.replica import SimulatedReplica
from autoscaling.simulator.step_times import StepTimes
from autoscaling.sustained import ReplicaCapability
from cluster.load import Load
from cluster.request import GenerationRequest, SamplingParams
from cluster.slo import Objective
from cluster.waiting_room import most_requests
from engine.admission import refusal
from tests.autoscaling.simulator.conftest import profiled

REQUESTS = 1000


@dataclass
class Log:
    first_s: dict[str, float] = field(default_factory=dict)
    end_s: dict[str, float] = field(default_factory=dict)
    loads: list[Load] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    rounds: int = 0


def run(capability: ReplicaCapability, rate: float, most_repeats: int | None) -> tuple[Log, SimulatedReplica]:
    rng, now_s, log = random.Random(0), 0.0, Log()
    replica = SimulatedReplica("r", capability, StepTimes(capability.model), most_repeats=most_repeats)
    for index in range(REQUESTS):
        now_s += rng.expovariate(rate)
        forward(replica, now_s, log)
        log.loads.append(replica.load(now_s))
        refused_s = replica.offer(
            str(index),
            now_s,
            prompt_tokens=1 + min(6000, int(rng.lognormvariate(6.0, 1))),
            output_tokens=1 + min(1000, int(rng.lognormvariate(4.5, 0.8))),
            max_tokens=1024,
            priority=rng.choice([0, 0, 1]),
            objective=rng.choice(["latency", "latency", "throughput"]),
            deadline_s=rng.choice([None, 0.5, 20.0]),
        )
        if refused_s is not None:
            log.refused.append(str(index))
    while replica.ends_s < inf:
        forward(replica, replica.ends_s, log)
    return log, replica


def forward(replica: SimulatedReplica, now_s: float, log: Log) -> None:
    while replica.ends_s <= now_s:
        ends_s = replica.ends_s
        done = replica.finish_steps()
        log.rounds += 1
        log.first_s |= {sequence.request_id: ends_s for sequence in done.begun}
        log.end_s |= {sequence.request_id: ends_s for sequence in done.ended}


@pytest.mark.parametrize(("rate", "has_profile"), [(14.0, False), (12.0, True), (40.0, False)])
def test_fast_forward_equals_step_by_step(small: ReplicaCapability, rate: float, has_profile: bool) -> None:
    """Token times to 1e-6, preemptions, refusals, and the Load at each arrival, which the router decides by."""
    capability = replace(small, model=profiled(small.model)) if has_profile else small
    fast, replica = run(capability, rate, most_repeats=None)
    slow, by_steps = run(capability, rate, most_repeats=1)
    assert fast.first_s.keys() == fast.end_s.keys() == slow.end_s.keys()
    assert fast.first_s == pytest.approx(slow.first_s, rel=1e-6)
    assert fast.end_s == pytest.approx(slow.end_s, rel=1e-6)
    assert fast.refused == slow.refused
    assert replica.num_preemptions == by_steps.num_preemptions > 0
    assert replica.busy_s == pytest.approx(by_steps.busy_s)
    assert len(fast.end_s) + len(fast.refused) == REQUESTS
    assert slow.rounds > 2 * fast.rounds
    for one, other in zip(fast.loads, slow.loads, strict=True):
        assert one.prefill_tokens_per_s == pytest.approx(other.prefill_tokens_per_s)
        assert one.decode_tokens_per_s == pytest.approx(other.decode_tokens_per_s, rel=0.02, abs=1)
        assert rates_aside(one) == rates_aside(other)


def rates_aside(load: Load) -> Load:
    return replace(load, prefill_tokens_per_s=0.0, decode_tokens_per_s=0.0)


def test_at_its_end_it_holds_nothing(small: ReplicaCapability) -> None:
    log, replica = run(small, 9.0, most_repeats=None)
    load = replica.load(1e6)
    assert len(log.end_s) > REQUESTS / 2
    assert (load.kv_tokens_used, load.decode_sequences, load.waiting_requests) == (0, 0, 0)
    assert (load.waiting_prefill_tokens, load.promised_kv_tokens) == (0, 0)


def test_alone_it_takes_a_prefill_and_its_decodes(bf16: ReplicaCapability) -> None:
    replica, log = SimulatedReplica("r", bf16, StepTimes(bf16.model)), Log()
    replica.offer("a", 5.0, prompt_tokens=3000, output_tokens=100, max_tokens=200)
    forward(replica, 1e9, log)
    model = bf16.model
    ttft_s = model.prefill_s(2048) + model.prefill_s(952, 2048)
    assert log.first_s["a"] - 5.0 == pytest.approx(ttft_s)
    decodes_s = sum(model.decode_step_s(1, 3000 + index) for index in range(1, 100))
    assert log.end_s["a"] - log.first_s["a"] == pytest.approx(decodes_s)


def test_it_refuses_what_the_engine_refuses(small: ReplicaCapability) -> None:
    """The rules are engine.admission's, on the same Load."""
    rng = random.Random(4)
    replica = SimulatedReplica("r", small, StepTimes(small.model))
    outcomes = set()
    for index in range(600):
        prompt = rng.randrange(1, 400)
        objective: Objective = rng.choice(["latency", "throughput"])
        request = GenerationRequest(
            request_id=str(index),
            prompt_token_ids=[1] * prompt,
            sampling=SamplingParams(max_tokens=64),
            objective=objective,
        )
        limit = most_requests(objective, max_sequences=small.limits.max_sequences, max_waiting=small.limits.max_waiting)
        expected = refusal(replica.load(0.0), request, num_requests=replica.num_requests, max_requests=limit)
        found = replica.offer(
            str(index), 0.0, prompt_tokens=prompt, output_tokens=32, max_tokens=64, objective=objective
        )
        assert found == (None if expected is None else expected.retry_after_s)
        outcomes.add((objective, found is None))
    assert len(outcomes) == 4


def test_a_prefix_that_was_computed_is_not_computed_again(bf16: ReplicaCapability) -> None:
    def ttft_s(prefix: tuple[int, ...]) -> float:
        replica, log = SimulatedReplica("r", bf16, StepTimes(bf16.model)), Log()
        replica.offer("a", 0.0, prompt_tokens=2100, output_tokens=4, max_tokens=8, prefix=(1, 2, 3, 4, 5))
        forward(replica, 10.0, log)
        replica.offer("b", 10.0, prompt_tokens=2100, output_tokens=4, max_tokens=8, prefix=prefix)
        forward(replica, 20.0, log)
        return log.first_s["b"] - 10.0

    # Ids stand for 512 tokens; of the fifth only the 52 that the prompt has.
    assert ttft_s((1, 2, 3, 4, 5)) == pytest.approx(bf16.model.prefill_s(4, 2096))
    assert ttft_s((1, 2, 9, 8, 7)) == pytest.approx(bf16.model.prefill_s(2100 - 1024, 1024))
    assert ttft_s((9, 2, 3, 4, 5)) > bf16.model.prefill_s(2048)
