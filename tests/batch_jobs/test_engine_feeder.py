"""Many callers, one real engine: nobody's rows are lost, mixed up or changed by their neighbours."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from batch_jobs.engine_choice import choose_engine
from batch_jobs.engine_feeder import EngineFeeder
from cluster.config import FleetConfig
from cluster.engine_spec import EngineSpec
from cluster.request import Engine, GenerationRequest, SamplingParams, TokenDelta
from engine.engine import build_engine

GREEDY = SamplingParams(max_tokens=6, temperature=0.0, ignore_eos=True)


@pytest.fixture(scope="module")
def spec(checkpoint: Path) -> EngineSpec:
    """Room for four sequences and three more that wait."""
    spec = choose_engine(FleetConfig.built_in(), "int8").spec
    return replace(spec, kv_capacity_tokens=512, max_context=128, max_sequences=4, max_waiting=3, num_threads=1)


@pytest.fixture(scope="module")
def feeder(spec: EngineSpec) -> EngineFeeder:
    return EngineFeeder(lambda: build_engine(spec))


def requests(name: str, count: int, sampling: SamplingParams = GREEDY) -> list[GenerationRequest]:
    return [
        GenerationRequest(request_id=f"{name}-{i}", prompt_token_ids=[*range(100, 110 + 7 * i)], sampling=sampling)
        for i in range(count)
    ]


def test_callers_in_threads_get_what_each_would_get_alone(feeder: EngineFeeder) -> None:
    alone = [feeder.generate([request])[0].token_ids for request in requests("alone", 6)]
    assert all(len(tokens) == 6 for tokens in alone)
    with ThreadPoolExecutor(4) as pool:
        calls = [pool.submit(feeder.generate, requests(f"call{i}", 6)) for i in range(4)]
    for call in calls:
        assert [outcome.token_ids for outcome in call.result()] == alone
        assert {outcome.finish_reason for outcome in call.result()} == {"length"}


def test_a_request_that_can_never_run_is_its_own_error(feeder: EngineFeeder) -> None:
    good, long = requests("mixed", 1)[0], requests("long", 1, replace(GREEDY, max_tokens=500))[0]
    outcomes = feeder.generate([long, good])
    assert "context" in (outcomes[0].error or "")
    assert (outcomes[1].finish_reason, len(outcomes[1].token_ids)) == ("length", 6)
    assert feeder.generate([]) == []


class FailingEngine:
    """A real engine whose fifth step fails."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._num_steps = 0

    def __getattr__(self, name: str) -> object:
        return getattr(self._engine, name)

    def step(self) -> list[TokenDelta]:
        self._num_steps += 1
        if self._num_steps == 5:
            raise MemoryError("out of memory")
        return self._engine.step()


def test_an_engine_that_fails_fails_every_caller(spec: EngineSpec) -> None:
    feeder = EngineFeeder(lambda: FailingEngine(build_engine(spec)))  # type: ignore[arg-type, return-value]
    with ThreadPoolExecutor(3) as pool:
        calls = [pool.submit(feeder.generate, requests(f"call{i}", 3)) for i in range(3)]
    for call in calls:
        with pytest.raises(MemoryError, match="out of memory"):
            call.result()
    with pytest.raises(MemoryError):
        feeder.generate(requests("later", 1))


def test_an_engine_that_cannot_be_built_says_why() -> None:
    def build() -> Engine:
        raise OSError("no such weights")

    with pytest.raises(OSError, match="no such weights"):
        EngineFeeder(build)
