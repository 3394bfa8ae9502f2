"""Many callers, one real engine: no row is lost, mixed up or changed by its neighbours, nor by the engine's death."""

import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import psutil
import pytest

from batch_jobs import engine_feeder
from batch_jobs.engine_choice import choose_engine
from batch_jobs.engine_feeder import EngineFeeder
from cluster.config import FleetConfig
from cluster.engine_spec import EngineSpec
from cluster.load import Load
from cluster.request import GenerationRequest, SamplingParams, Verdict
from cluster.variants import Variant
from engine.process import EngineDied, EngineProcess

GREEDY = SamplingParams(max_tokens=6, temperature=0.0, ignore_eos=True)


@pytest.fixture(scope="module")
def spec(checkpoint: Path) -> EngineSpec:
    """Room for four sequences and three more that wait."""
    spec = choose_engine(FleetConfig.built_in(), "int8").spec
    return replace(spec, kv_capacity_tokens=512, max_context=128, max_sequences=4, max_waiting=3, num_threads=1)


@pytest.fixture(scope="module")
def tiny_spec(spec: EngineSpec, tiny_checkpoint: Path) -> EngineSpec:
    return replace(spec, checkpoint=str(tiny_checkpoint), variant=Variant(name="bf16"))


@pytest.fixture(scope="module")
def feeder(spec: EngineSpec) -> Iterator[EngineFeeder]:
    feeder = EngineFeeder(spec)
    yield feeder
    feeder.close()


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


def engines() -> list[psutil.Process]:
    return [child for child in psutil.Process().children() if "engine.process_main" in child.cmdline()]


def test_rows_of_a_killed_engine_come_back_as_if_it_had_lived(feeder: EngineFeeder) -> None:
    sampling = replace(GREEDY, max_tokens=40)
    expected = [outcome.token_ids for outcome in feeder.generate(requests("alone", 5, sampling))]
    with ThreadPoolExecutor(2) as pool:
        calls = [pool.submit(feeder.generate, requests(f"call{i}", 5, sampling)) for i in range(2)]
        for _ in range(2):
            (engine,) = engines()
            wait_for_work(engine)
            engine.kill()
            engine.wait(10)
            wait_for(lambda: bool(engines()))
    for call in calls:
        assert [outcome.token_ids for outcome in call.result()] == expected


class Poisoned(EngineProcess):
    """A real engine that is killed once it has taken a certain row."""

    async def submit(self, request: GenerationRequest) -> Verdict:
        verdict = await super().submit(request)
        if request.request_id == "poison-0":
            os.kill(self.pid, signal.SIGKILL)
        return verdict


def test_a_row_that_kills_its_engine_is_the_only_error(tiny_spec: EngineSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_feeder, "EngineProcess", Poisoned)
    monkeypatch.setattr(engine_feeder, "RESTART_DELAY_S", 0.0)
    monkeypatch.setattr(engine_feeder, "MAX_ATTEMPTS", 2)
    feeder = EngineFeeder(tiny_spec)
    rows = requests("good", 5)
    rows.insert(2, requests("poison", 1)[0])
    outcomes = feeder.generate(rows)
    feeder.close()
    assert [outcome.error is None for outcome in outcomes] == [True, True, False, True, True, True]
    assert re.fullmatch(r"its engine ended 2 times with it \(.* ended with signal SIGKILL\)", outcomes[2].error or "")


def test_an_engine_that_cannot_start_says_why(tiny_spec: EngineSpec) -> None:
    with pytest.raises(EngineDied, match="no_such_folder"):
        EngineFeeder(replace(tiny_spec, checkpoint="/no_such_folder"))


class KilledAtFirst(EngineProcess):
    """A real engine that is killed before it serves, unless another one was before it."""

    num_killed: ClassVar[int] = 0

    async def ready(self) -> Load:
        if not KilledAtFirst.num_killed:
            KilledAtFirst.num_killed += 1
            os.kill(self.pid, signal.SIGKILL)
        return await super().ready()


def test_a_kill_before_the_first_start_is_over_costs_nothing(
    tiny_spec: EngineSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_feeder, "EngineProcess", KilledAtFirst)
    monkeypatch.setattr(engine_feeder, "RESTART_DELAY_S", 0.0)
    feeder = EngineFeeder(tiny_spec)
    (outcome,) = feeder.generate(requests("row", 1))
    feeder.close()
    assert KilledAtFirst.num_killed == 1
    assert (outcome.finish_reason, len(outcome.token_ids)) == ("length", 6)


def test_a_closed_one_leaves_no_process(tiny_spec: EngineSpec) -> None:
    before = engines()
    feeder = EngineFeeder(tiny_spec)
    (engine,) = [process for process in engines() if process not in before]
    feeder.close()
    assert not engine.is_running()
    with pytest.raises(EngineDied, match="closed"):
        feeder.generate(requests("late", 1))


def wait_for_work(engine: psutil.Process) -> None:
    """It computes at full speed for a while."""
    wait_for(lambda: engine.cpu_percent(0.2) > 50)


def wait_for(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline_s, "it did not happen in time"
        time.sleep(0.02)


class Watched:
    """A real engine, and what it was given in what order."""

    def __init__(self, engine: EngineProcess, submitted: list[str]) -> None:
        self._engine = engine
        self._submitted = submitted

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    async def submit(self, request: GenerationRequest) -> Verdict:
        self._submitted.append(request.request_id)
        return await self._engine.submit(request)


def test_the_rows_of_a_slice_that_may_be_longest_go_first_and_come_back_in_their_places(tiny_spec: EngineSpec) -> None:
    submitted: list[str] = []
    feeder = EngineFeeder(tiny_spec, start=lambda spec: Watched(EngineProcess.start(spec), submitted))
    bounds = [3, 9, 1, 9, 5]
    slices = [
        replace(one, sampling=replace(GREEDY, max_tokens=bound))
        for one, bound in zip(requests("row", 5), bounds, strict=True)
    ]
    try:
        outcomes = feeder.generate(slices)
    finally:
        feeder.close()
    assert submitted == ["row-1", "row-3", "row-4", "row-0", "row-2"]
    assert [len(outcome.token_ids) for outcome in outcomes] == bounds
