"""A frame of `quantfleet top`, drawn from what a real surface answers, and from fleets too large for a terminal."""

from __future__ import annotations

import copy
import io
from itertools import product
from typing import Any

import pytest
from rich.console import Console

from autoscaling.scaling import ScalingDecision
from serve_app.decision_board import Posted, packed
from serve_app.decision_feed import DecisionFeed
from serve_app.top_frame import frame, heights, with_decision

HI: Any = [{"role": "user", "content": "hi"}]


def drawn(state: Any, decisions: Any = (), *, width: int = 80, height: int = 24, notice: str = "") -> list[str]:
    console = Console(width=width, height=height, file=io.StringIO(), color_system=None)
    console.print(frame(state, decisions, height=height, notice=notice))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


@pytest.fixture
async def state(running: Any) -> Any:
    """Of a fleet that answered one request."""
    await running.openai.chat.completions.create(model="small", messages=HI)
    return (await running.http.get("/v1/fleet")).json()


def decision(at_s: float, replicas: dict[str, int], reason: str = "demand", *, dry_run: bool = False) -> Any:
    """As DecisionFeed.describe has it."""

    class NoRouter:
        def follow(self, shares: Any, until_s: float) -> None:
            pass

    feed = DecisionFeed(lambda: None, NoRouter(), 10.0)  # type: ignore[arg-type,return-value]
    made = ScalingDecision(replicas=replicas, shares={}, reason=reason)
    feed._take(packed(Posted(at_s=at_s, decision=made, dry_run=dry_run, log_path=None)))
    return feed.describe()


async def test_what_a_real_surface_says_is_shown(state: Any) -> None:
    text = "\n".join(drawn(state))
    assert "small" in text
    assert "0 in flight" in text
    (bf16,) = [line for line in text.splitlines() if line.startswith("bf16")]
    assert bf16.split()[1:3] == ["bf16-0", "ready"]
    assert "0% /8192" in bf16
    (any_class,) = [line for line in text.splitlines() if line.startswith("any")]
    assert any_class.split()[3:5] == ["1", "1"]
    assert "100.0%" in any_class
    assert "no request yet" in next(line for line in text.splitlines() if line.startswith("best"))
    assert "no decision has come" in text


async def test_the_kv_bar_grows_with_what_is_used(state: Any) -> None:
    cells = []
    for used in (0, 1638, 4096, 8192):
        replica = state["variants"][0]["replicas"][0]
        replica["kv_tokens_used"] = used
        cells.append("\n".join(drawn(state)).count("█"))
    assert [count - cells[0] for count in cells] == [0, 2, 5, 10]


async def test_decisions_come_one_by_one(state: Any) -> None:
    seen: Any = ()
    for at_s, count in ((100.0, 1), (110.0, 2), (110.0, 2)):
        state["scaling"] = decision(at_s, {"bf16": count, "nf4": 0}, f"needs {count}\nreplicas [red]now[/red]")
        seen = with_decision(seen, state)
    assert [each["decided_at_s"] for each in seen] == [110.0, 100.0]
    newest, oldest = drawn(state, seen)[-2:]
    assert "bf16 1→2, nf4 0" in newest
    assert "needs 2 replicas [red]now[/red]" in newest, "what a fleet says is text, not markup"
    assert "bf16 1, nf4 0" in oldest
    state["scaling"] = decision(120.0, {"bf16": 2, "nf4": 0}, dry_run=True)
    assert "(dry run)" in drawn(state, with_decision((), state))[-1]


async def test_a_silent_replica_and_a_variant_without_one_are_told(state: Any) -> None:
    state["variants"][0]["replicas"][0]["age_s"] = 4.4
    state["variants"][1]["replicas"] = []
    lines = drawn(state)
    assert any("bf16-0" in line and "silent 4 s" in line for line in lines)
    assert any(line.split() == ["nf4", "-", "none"] for line in lines)


SIZES = ((1, 1), (3, 4), (40, 4), (3, 30), (60, 60))
"""Of fleets: replicas and classes."""


def of_size(state: Any, num_replicas: int, num_classes: int) -> Any:
    """With numbers as wide as they come."""
    state = copy.deepcopy(state)
    (replica,) = state["variants"][0]["replicas"]
    replica |= {"decode_sequences": 256, "waiting_requests": 1000, "decode_tokens_per_s": 12345.6}
    replica |= {"prefill_tokens_per_s": 123456.7, "kv_tokens_capacity": 1_234_567, "kv_tokens_used": 1_234_567}
    state["variants"][0] |= {"name": "a-variant-of-a-long-name", "replicas": [replica] * num_replicas}
    report = state["slo_classes"]["any"]
    state["slo_classes"] = {f"class-{number}": report for number in range(num_classes)}
    state["scaling"] = decision(100.0, {"bf16": 1}, "a reason of many words " * 20)
    return state


async def test_every_fleet_fits_the_terminal(state: Any) -> None:
    for (num_replicas, num_classes), height in product(SIZES, (24, 40)):
        sized = of_size(state, num_replicas, num_classes)
        lines = drawn(sized, [sized["scaling"]] * 50, height=height, notice="gone " * 40)
        assert len(lines) <= height - 1
        assert max(map(len, lines)) <= 80
        assert "class-0" in "\n".join(lines)
        assert sum("more" in line for line in lines) == (num_replicas > 30) + (num_classes > 20)
        assert any("100% /1.2M" in line for line in lines), "the bar's figure is not cut off"


def test_lines_are_given_where_they_are_needed() -> None:
    few = heights(24, num_replicas=3, num_classes=4)
    assert (few.replicas, few.classes, few.decisions) == (3, 4, 11)
    many = heights(24, num_replicas=40, num_classes=4)
    assert (many.replicas, many.classes, many.decisions) == (11, 4, 3)
    assert heights(5, num_replicas=3, num_classes=3).decisions == 1
