"""ReplicaView: the backlog made of a Load and of what was dispatched since."""

from __future__ import annotations

import pytest

from cluster.load import Load
from cluster.replica_view import Dispatch, ReplicaView

LOAD = Load(
    replica_id="int8-0",
    variant="int8",
    measured_at_s=1e9,
    kv_tokens_capacity=1600,
    kv_tokens_used=320,
    decode_sequences=3,
    waiting_requests=1,
    waiting_prefill_tokens=70,
    promised_kv_tokens=200,
    prefill_tokens_per_s=50.0,
    step_time_ratio=1.5,
    step_samples=100,
)


def view_of(*dispatches: Dispatch) -> ReplicaView:
    view = ReplicaView(load=LOAD, received_s=10.0)
    for index, dispatch in enumerate(dispatches):
        view.dispatched(f"r{index}", dispatch)
    return view


def dispatch_at(at_s: float, tpot_ms: float | None = None) -> Dispatch:
    return Dispatch(at_s=at_s, prompt_tokens=40, max_tokens=60, tpot_ms=tpot_ms)


@pytest.mark.parametrize("num_ingresses", [1, 3])
def test_dispatches_since_the_load_are_added_for_every_ingress(num_ingresses: int) -> None:
    backlog = view_of(dispatch_at(10.1), dispatch_at(10.2)).backlog(fresh=True, num_ingresses=num_ingresses)
    assert backlog.decoding == 3
    assert backlog.waiting == 1 + 2 * num_ingresses
    assert backlog.prefill_tokens == 70 + 80 * num_ingresses
    assert backlog.kv_promised_tokens == 200 + 200 * num_ingresses
    assert backlog.kv_used_tokens == 320
    assert (backlog.prefill_tokens_per_s, backlog.step_time_ratio) == (50.0, 1.5)


def test_of_a_stale_load_the_rates_are_the_profiles() -> None:
    backlog = view_of().backlog(fresh=False, num_ingresses=1)
    assert (backlog.prefill_tokens_per_s, backlog.step_time_ratio) == (0.0, 1.0)
    assert backlog.decoding == 3


def test_a_load_counts_what_had_time_to_arrive() -> None:
    view = view_of(dispatch_at(10.0), dispatch_at(10.09))
    view.received(LOAD, 10.1)
    assert view.unseen == {"r1"}
    view.finished("r1")
    assert not view.unseen
    assert view.live.keys() == {"r0"}


def test_the_tightest_promise_of_those_that_still_run() -> None:
    view = view_of(dispatch_at(10.0), dispatch_at(10.0, tpot_ms=60), dispatch_at(10.0, tpot_ms=150))
    assert view.tightest_tpot_ms() == 60
    view.finished("r1")
    assert view.tightest_tpot_ms() == 150
    view.finished("r2")
    assert view.tightest_tpot_ms() is None
