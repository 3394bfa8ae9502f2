"""Sends arrivals to a running fleet at their times, and sums up as `simulate` does what came of them; it starts none.

Open loop: a request is sent when it is due, however many have not been answered, and its time to the first token counts
from then. What the fleet held is what GET /v1/fleet named, asked once a second.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from statistics import fmean

import httpx

from autoscaling.fleet_description import FleetDescription
from autoscaling.simulator.arrivals import Arrival
from autoscaling.simulator.ledger import Ledger, SimulatedRequest
from autoscaling.simulator.summary import RunLabel, RunSummary, TimelinePoint, VariantSummary, added_up
from cluster.cost_model import CostModel
from cluster.errors import UserError
from serve_app.bench.stream_client import Answered, StreamClient

POLL_S = 1.0


@dataclass(slots=True, kw_only=True)
class Replayed:
    """By seconds since the first request was due."""

    ledger: Ledger
    warm_up_s: float
    timeline: list[TimelinePoint] = field(default_factory=list)
    step_time_ratios: dict[str, list[float]] = field(default_factory=dict)
    """By variant, of each replica at each look."""
    mistakes: Counter[str] = field(default_factory=Counter)
    """What refusals said."""
    ended_s: float = 0.0
    worst_lag_s: float = 0.0
    """Of a request sent later than it was due: the client's own."""


async def replay_against(
    url: str,
    key: str | None,
    arrivals: Iterable[Arrival],
    description: FleetDescription,
    *,
    max_context: int,
    warm_up_s: float,
) -> Replayed:
    """UserError where no fleet of this model answers at `url`."""
    client = StreamClient(url.rstrip("/") + "/", description.model, description.shape.vocab, key=key)
    try:
        await _check(client, url, description)
        return await replay(arrivals, client, description, max_context=max_context, warm_up_s=warm_up_s)
    finally:
        await client.close()


async def _check(client: StreamClient, url: str, description: FleetDescription) -> None:
    try:
        fleet = await client.fleet()
    except httpx.HTTPError as error:
        raise UserError(f"--url {url}: no fleet answers there ({error}); start one with `quantfleet serve`") from None
    if fleet["model"] != description.model:
        raise UserError(f"--url {url}: serves {fleet['model']}, the configuration is of {description.model}")
    unknown = {each["name"] for each in fleet["variants"]} - set(description.variants)
    if unknown:
        raise UserError(f"--url {url}: has a variant {min(unknown)} that the configuration has not; give its own file")


async def replay(
    arrivals: Iterable[Arrival],
    client: StreamClient,
    description: FleetDescription,
    *,
    max_context: int,
    warm_up_s: float = 0.0,
) -> Replayed:
    """Requests longer than `max_context` are refused here, as the simulator refuses them."""
    replayed = Replayed(ledger=Ledger(dict(description.classes), warm_up_s), warm_up_s=warm_up_s)
    started_s = time.monotonic()
    polling = asyncio.create_task(_poll(client, replayed, started_s))
    sent: list[asyncio.Task[None]] = []
    try:
        for number, arrival in enumerate(arrivals):
            await asyncio.sleep(max(0.0, started_s + arrival.at_s - time.monotonic()))
            replayed.worst_lag_s = max(replayed.worst_lag_s, time.monotonic() - started_s - arrival.at_s)
            replayed.ledger.arrived(arrival)
            if arrival.prompt_tokens + arrival.output_tokens > max_context:
                replayed.ledger.too_long(arrival)
            else:
                sent.append(asyncio.create_task(_one(arrival, number, client, description, replayed, started_s)))
        await asyncio.gather(*sent)
    finally:
        polling.cancel()
    replayed.ended_s = time.monotonic() - started_s
    return replayed


async def _one(
    arrival: Arrival,
    number: int,
    client: StreamClient,
    description: FleetDescription,
    replayed: Replayed,
    started_s: float,
) -> None:
    try:
        found = await client.send(arrival, number)
    except httpx.HTTPError as error:
        replayed.mistakes[f"the connection broke: {type(error).__name__}"] += 1
        replayed.ledger.refused(arrival)
        return
    if not isinstance(found, Answered) or found.output_tokens != arrival.output_tokens:
        replayed.mistakes["an answer was cut" if isinstance(found, Answered) else found.reason] += 1
        replayed.ledger.refused(arrival)
        return
    request = SimulatedRequest(str(number), arrival, description.classes[arrival.slo_class])
    request.first_token_s = found.first_token_s - started_s
    quality = description.variants[found.variant].variant.quality
    replayed.ledger.answered(request, found.variant, quality, found.last_token_s - started_s)


async def _poll(client: StreamClient, replayed: Replayed, started_s: float) -> None:
    while True:
        try:
            fleet = await client.fleet()
        except httpx.HTTPError:
            fleet = {"variants": []}
        states = {each["name"]: Counter(one["state"] for one in each["replicas"]) for each in fleet["variants"]}
        for each in fleet["variants"]:
            told = [one["step_time_ratio"] for one in each["replicas"] if one["decode_sequences"]]
            replayed.step_time_ratios.setdefault(each["name"], []).extend(told)
        if states:
            point = TimelinePoint(
                at_s=time.monotonic() - started_s,
                running={name: count["ready"] for name, count in states.items()},
                starting={},
                draining={name: count["draining"] for name, count in states.items()},
            )
            replayed.timeline.append(point)
        await asyncio.sleep(POLL_S)


def summarised(replayed: Replayed, description: FleetDescription, label: RunLabel) -> RunSummary:
    """Accelerator time is that of replicas which ran: of starting ones /v1/fleet tells nothing."""
    points = [point for point in replayed.timeline if point.at_s >= replayed.warm_up_s]
    models = description.cost_models()
    return added_up(
        replayed.ledger,
        label,
        variants={name: _variant(name, points, replayed, model) for name, model in models.items()},
        replicas=tuple(_changes(points, replayed.warm_up_s)),
        warm_up_s=replayed.warm_up_s,
        duration_s=replayed.ended_s - replayed.warm_up_s,
    )


def _variant(name: str, points: Sequence[TimelinePoint], replayed: Replayed, model: CostModel) -> VariantSummary:
    held_s = 0.0
    for point, following in zip(points, [*(each.at_s for each in points[1:]), replayed.ended_s], strict=True):
        held_s += _held(point, name) * (following - point.at_s)
    ratios = replayed.step_time_ratios.get(name)
    return VariantSummary(
        gpu_hours=held_s * model.share / 3600,
        cost=held_s * model.price_per_s,
        most_replicas=max((_held(point, name) for point in points), default=0),
        busy=None,
        preemptions=None,
        prefix_hit_tokens=None,
        step_time_ratio=fmean(ratios) if ratios else None,
    )


def _held(point: TimelinePoint, name: str) -> int:
    return point.running.get(name, 0) + point.draining.get(name, 0)


def _changes(points: Iterable[TimelinePoint], from_s: float) -> Iterable[TimelinePoint]:
    last: TimelinePoint | None = None
    for point in points:
        if last is None or (point.running, point.draining) != (last.running, last.draining):
            yield TimelinePoint(at_s=point.at_s - from_s, running=point.running, starting={}, draining=point.draining)
        last = point
