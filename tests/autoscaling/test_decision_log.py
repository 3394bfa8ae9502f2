"""The decision log: replays to the same decisions, says why in words, and names what is wrong with a file."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest
from typer.testing import CliRunner

from autoscaling.decision_log import DecisionLog, entries, read_header, replay
from autoscaling.explanation import changes, explain, in_force
from autoscaling.fleet_description import FleetDescription, VariantTerms
from autoscaling.fleet_plan import FleetTerms, VariantBounds
from autoscaling.kv_aware import KvAwareSettings
from autoscaling.scaling import ClassTraffic, FleetObservation
from cluster.errors import UserError
from cluster.load import Load
from quantfleet import app

START_S = datetime(2026, 11, 18, 10, 26, 40, tzinfo=UTC).timestamp()


@pytest.fixture
def description(terms: FleetTerms) -> FleetDescription:
    replica = next(iter(terms.replicas.values()))
    return FleetDescription(
        model="llama",
        shape=replica.model.shape,
        accelerator=replica.model.accelerator,
        variants={
            name: VariantTerms(
                variant=each.model.variant,
                share=1.0,
                kv_dtype="bf16",
                kv_capacity_tokens=each.kv_capacity_tokens,
                block_size=each.block_size,
                limits=each.limits,
                cold_start_s=each.cold_start_s,
                bounds=VariantBounds(min=0, max=8),
            )
            for name, each in terms.replicas.items()
        },
        classes=terms.classes,
        budget_replicas=8,
        settings=KvAwareSettings(),
    )


@pytest.fixture
def log(tmp_path: Path, description: FleetDescription) -> Path:
    """Ten quiet decisions and ten with fifty times the traffic."""
    path = tmp_path / "logs" / "decisions.jsonl"
    written, policy = DecisionLog(path, description), description.policy()
    for index in range(20):
        now_s = START_S + 10 * index
        seen = observation(now_s, 1.0 if index < 10 else 50.0)
        written.append(now_s, seen, policy.decide(seen))
    return path


def observation(now_s: float, rate: float) -> FleetObservation:
    load = Load(replica_id="fp8-0", variant="fp8", measured_at_s=now_s, kv_tokens_capacity=430_000, kv_tokens_used=1600)
    traffic = ClassTraffic(
        slo_class="standard",
        arrivals=round(10 * rate),
        window_s=10.0,
        prompt_tokens=round(10 * rate * 1155),
        output_tokens=211,
        finished=1,
        refused=2,
    )
    return FleetObservation(now_s=now_s, loads=(load,), starting={"fp8": (now_s - 5,)}, draining={}, traffic=(traffic,))


def test_it_replays_to_the_same_decisions(log: Path) -> None:
    again = list(replay(log))
    assert len(again) == 20
    assert all(replayed.is_same for replayed in again)
    assert len({str(replayed.entry.decision.replicas) for replayed in again}) > 1


def test_a_changed_observation_replays_to_another_decision(log: Path) -> None:
    text = log.read_text()
    log.write_text(text.replace('"arrivals":500', '"arrivals":5'))
    assert not all(replayed.is_same for replayed in replay(log))


def test_the_description_comes_back_whole(log: Path, description: FleetDescription) -> None:
    assert read_header(log).fleet == description


def test_every_change_is_a_line(log: Path) -> None:
    lines = list(changes(entries(log)))
    assert 2 <= len(lines) < 20
    assert lines[0].startswith("2026-11-18 10:26:40  1 fp8 running -> ")


def test_a_decision_is_told_with_its_arithmetic(log: Path) -> None:
    text = explain(in_force(entries(log), "2026-11-18 10:28:35"))
    assert "standard: 500 requests arrived in 10 s (1155 prompt tokens each), 1 ended, 2 refused" in text
    assert "fp8-0 (fp8): 0 decoding, 0 waiting, 1600 of 430000 KV tokens" in text
    assert "starting: 1 fp8" in text
    assert "requests/s: " in text
    assert "bound by" in text


def test_the_decision_in_force_is_the_last_before(log: Path) -> None:
    assert in_force(entries(log), "2026-11-18 10:26:49+00:00").at_s == START_S
    assert in_force(entries(log), "2026-11-18T12:26:50+02:00").at_s == START_S + 10


@pytest.mark.parametrize(
    ("at", "message"),
    [("yesterday", "not a time"), ("2026-11-18 10:26:39", "before the first decision, 2026-11-18 10:26:40")],
)
def test_times_that_name_no_decision(log: Path, at: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        in_force(entries(log), at)


def test_a_line_cut_short_is_left_out(log: Path) -> None:
    with log.open("a") as stream:
        stream.write('{"at_s": 17950')
    assert len(list(entries(log))) == 20


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", ":1: not the first line of a decision log"),
        ('{"step": 1}\n', ":1: not the first line of a decision log"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "other.jsonl"
    path.write_text(content)
    with pytest.raises(UserError, match=message):
        list(entries(path))


def test_a_broken_line_is_named(log: Path) -> None:
    lines = log.read_text().splitlines(keepends=True)
    lines[3] = '{"at_s": "noon"}\n'
    log.write_text("".join(lines))
    with pytest.raises(UserError, match=":4: not a decision"):
        list(entries(log))


def test_the_command_shows_changes_one_decision_and_the_replay(log: Path) -> None:
    runner = CliRunner()
    assert "-> " in runner.invoke(app, ["explain", str(log)]).output
    assert "arrived in" in runner.invoke(app, ["explain", str(log), "--at", "2026-11-18 10:28:35"]).output
    assert "20 decisions, all the same again" in runner.invoke(app, ["explain", str(log), "--replay"]).output
