"""RunSummary: a simulated run in figures, as JSON and back; it runs nothing and draws nothing.

Attainment is over all offered requests: one that was refused, or answered by a variant below its class's quality
floor, has missed. Goodput is requests that met every limit, a second. An accelerator counts from the moment it is asked
for until its replica has drained, the cold start included.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from autoscaling.simulator.fleet import SimulatedRun
from autoscaling.simulator.ledger import ARRIVALS_BIN_S, ClassLedger, Ledger
from cluster.errors import UserError

FORMAT = 1
FILE_NAME = "summary.json"
ARRIVAL_BINS = 240


@dataclass(frozen=True, slots=True, kw_only=True)
class Percentiles:
    """None where nothing was answered."""

    p50: float | None
    p90: float | None
    p99: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassSummary:
    offered: int
    met: int
    attainment: float
    refused: int
    too_long: int
    """Of the refused: longer than the context."""
    below_floor: int
    missed_ttft: int
    missed_tpot: int
    ttft_ms: Percentiles
    tpot_ms: Percentiles
    answered_by: Mapping[str, int]
    """Variant."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VariantSummary:
    gpu_hours: float
    cost: float
    """Dollars."""
    most_replicas: int
    busy: float | None
    """Share of the held time in which steps ran, the warm-up included; None, as the two below: of a real fleet."""
    preemptions: int | None
    prefix_hit_tokens: int | None
    step_time_ratio: float | None = None
    """Of a real fleet: measured over predicted, in the mean of what its replicas said."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TimelinePoint:
    at_s: float
    running: Mapping[str, int]
    starting: Mapping[str, int]
    draining: Mapping[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSummary:
    format: int
    name: str
    """In a comparison."""
    policy: str
    model: str
    accelerator: str
    traffic: str
    rate: float
    seed: int
    max_context: int
    warm_up_s: float
    """Before, and counted for nothing."""
    duration_s: float
    """From the first arrival that counts to the last answer."""
    offered: int
    met: int
    refused: int
    too_long: int
    longest_tokens: int
    """Of the requests longer than the context; 0: there were none."""
    attainment: float
    lowest_attainment: float
    """Of the classes."""
    goodput_per_s: float
    gpu_hours: float
    cost: float
    goodput_per_gpu_hour: float
    """Requests that met every limit, by GPU-hours."""
    classes: Mapping[str, ClassSummary]
    variants: Mapping[str, VariantSummary]
    replicas: tuple[TimelinePoint, ...]
    arrivals_bin_s: float
    arrivals: tuple[float, ...]
    """Requests a second, bin by bin."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunLabel:
    """What the run itself does not know."""

    name: str
    policy: str
    model: str
    accelerator: str
    traffic: str
    rate: float
    seed: int
    max_context: int


def summarised(run: SimulatedRun, label: RunLabel) -> RunSummary:
    return added_up(
        run.ledger,
        label,
        variants={name: _variant_summary(run, name) for name in run.terms.replicas},
        replicas=_timeline(run),
        warm_up_s=run.counted_from_s,
        duration_s=run.duration_s,
    )


def added_up(
    ledger: Ledger,
    label: RunLabel,
    *,
    variants: Mapping[str, VariantSummary],
    replicas: tuple[TimelinePoint, ...],
    warm_up_s: float,
    duration_s: float,
) -> RunSummary:
    """Of a run in simulated time or a real one."""
    classes = {name: _class_summary(entry) for name, entry in ledger.classes.items() if entry.offered}
    offered, met = sum(each.offered for each in classes.values()), sum(each.met for each in classes.values())
    gpu_hours = sum(each.gpu_hours for each in variants.values())
    bin_s, arrivals = _arrivals(ledger)
    return RunSummary(
        format=FORMAT,
        name=label.name,
        policy=label.policy,
        model=label.model,
        accelerator=label.accelerator,
        traffic=label.traffic,
        rate=label.rate,
        seed=label.seed,
        max_context=label.max_context,
        warm_up_s=warm_up_s,
        duration_s=duration_s,
        offered=offered,
        met=met,
        refused=sum(each.refused for each in classes.values()),
        too_long=sum(each.too_long for each in classes.values()),
        longest_tokens=ledger.longest_tokens,
        attainment=met / offered if offered else 1.0,
        lowest_attainment=min((each.attainment for each in classes.values()), default=1.0),
        goodput_per_s=met / duration_s if duration_s else 0.0,
        gpu_hours=gpu_hours,
        cost=sum(each.cost for each in variants.values()),
        goodput_per_gpu_hour=met / gpu_hours if gpu_hours else 0.0,
        classes=classes,
        variants=variants,
        replicas=replicas,
        arrivals_bin_s=bin_s,
        arrivals=arrivals,
    )


def write_summary(summary: RunSummary, folder: Path) -> Path:
    """Whole or not at all."""
    path = folder / FILE_NAME
    write_whole(path, msgspec.json.format(msgspec.json.encode(summary), indent=1))
    return path


def read_summary(folder: Path) -> RunSummary:
    """UserError where the folder holds no run of this version."""
    path = folder / FILE_NAME
    try:
        summary = msgspec.json.decode(path.read_bytes(), type=RunSummary)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); give the -o folder of a run") from None
    except msgspec.MsgspecError as error:
        raise UserError(
            f"{path}: not the summary of a run ({error}); run `quantfleet simulate` into it again"
        ) from None
    if summary.format != FORMAT:
        raise UserError(f"{path}: a summary of format {summary.format}, this version reads {FORMAT}; run it again")
    return summary


def write_whole(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.unfinished")
    with unfinished.open("wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(unfinished, path)


def _class_summary(entry: ClassLedger) -> ClassSummary:
    return ClassSummary(
        offered=entry.offered,
        met=entry.met,
        attainment=entry.met / entry.offered,
        refused=entry.refused,
        too_long=entry.too_long,
        below_floor=entry.below_floor,
        missed_ttft=entry.missed_ttft,
        missed_tpot=entry.missed_tpot,
        ttft_ms=_percentiles_ms(entry.ttft_s.tolist()),
        tpot_ms=_percentiles_ms(entry.tpot_s.tolist()),
        answered_by=dict(sorted(entry.answered_by.items())),
    )


def _percentiles_ms(values_s: list[float]) -> Percentiles:
    if not values_s:
        return Percentiles(p50=None, p90=None, p99=None)
    p50, p90, p99 = (float(value) * 1e3 for value in np.percentile(np.array(values_s), (50, 90, 99)))
    return Percentiles(p50=p50, p90=p90, p99=p99)


def _variant_summary(run: SimulatedRun, variant: str) -> VariantSummary:
    members = [member for member in run.replicas.members if member.variant == variant]
    capability = run.terms.replicas[variant]
    held_s, timeline = run.held_s(variant), _timeline(run)
    all_s = sum(member.held_s(run.ended_s) for member in members)
    return VariantSummary(
        gpu_hours=held_s * capability.model.share / 3600,
        cost=held_s * capability.model.price_per_s,
        most_replicas=max(
            (
                each.running.get(variant, 0) + each.starting.get(variant, 0) + each.draining.get(variant, 0)
                for each in timeline
            ),
            default=0,
        ),
        busy=sum(member.replica.busy_s for member in members) / all_s if all_s else 0.0,
        preemptions=sum(member.replica.num_preemptions for member in members),
        prefix_hit_tokens=sum(member.replica.num_prefix_hit_tokens for member in members),
    )


def _timeline(run: SimulatedRun) -> tuple[TimelinePoint, ...]:
    """From the moment on that counts, as the fleet was then."""
    from_s = run.counted_from_s
    points = run.replicas.history
    first = max((index for index, each in enumerate(points) if each.at_s <= from_s), default=0)
    return tuple(
        TimelinePoint(
            at_s=max(0.0, each.at_s - from_s),
            running=each.running,
            starting=each.starting,
            draining=each.draining,
        )
        for each in points[first:]
    )


def _arrivals(ledger: Ledger) -> tuple[float, tuple[float, ...]]:
    """At most so many bins, each a whole number of seconds."""
    seconds = ledger.arrivals_by_second
    last = max(seconds, default=0)
    width = -(-(last + 1) // ARRIVAL_BINS)
    counts = [0] * (last // width + 1)
    for second, count in seconds.items():
        counts[second // width] += count
    return width * ARRIVALS_BIN_S, tuple(count / (width * ARRIVALS_BIN_S) for count in counts)
