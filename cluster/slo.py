"""SLO classes: limits, the limits a request defines itself, and the accounting of attainment; it routes nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

from cluster.errors import UserError, did_you_mean

Objective = Literal["latency", "throughput", "background"]
Fallback = Literal["degrade", "queue", "reject"]

BACKGROUND_TTFT_SHARE = 0.1
"""Of the tightest TTFT limit; half of it on average, and only of those that come while nothing else runs."""
REQUEST_KEYS = ("ttft_ms", "tpot_ms", "min_quality", "objective")
"""What a request may say in a `slo` of its own; fallback and deadline are the operator's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SloLimits:
    """What a request is promised; a limit of None is never missed."""

    name: str
    ttft_ms: float | None = None
    tpot_ms: float | None = None
    objective: Objective = "latency"
    min_quality: float = 0.0
    fallback: Fallback = "queue"
    """Where nothing meets the limits: serve at another variant, wait for one (`queue`), or refuse at once."""
    deadline_s: float | None = None
    """How long `queue` may wait before the request is refused."""

    @property
    def is_background(self) -> bool:
        """Whether it runs on what the others leave, and so is promised nothing and asks for no replica."""
        return self.objective == "background"

    def met_by(self, outcome: Outcome) -> bool:
        return (
            _within(outcome.ttft_ms, self.ttft_ms)
            and _within(outcome.tpot_ms, self.tpot_ms)
            and meets_floor(outcome.quality, self.min_quality)
        )


BACKGROUND = SloLimits(name="background", objective="background", fallback="reject")
"""The built-in class of work that only uses what is idle; fleet.yaml may have one of that name instead."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a served request went; `tpot_ms` is None for an answer of one token."""

    ttft_ms: float
    tpot_ms: float | None
    quality: float | None


def background_step_s(classes: Iterable[SloLimits]) -> float | None:
    """The longest that a step of background work may be: what a request that comes meanwhile waits for it."""
    limits_ms = [limits.ttft_ms for limits in classes if limits.ttft_ms is not None]
    return BACKGROUND_TTFT_SHARE * min(limits_ms) / 1e3 if limits_ms else None


def meets_floor(quality: float | None, floor: float) -> bool:
    """A variant whose quality nobody measured meets no floor but none at all."""
    return floor <= 0 or (quality is not None and quality >= floor)


@dataclass(frozen=True, slots=True, kw_only=True)
class SloClasses:
    """The classes of fleet.yaml and how a request picks one."""

    classes: Mapping[str, SloLimits]
    default: str

    def resolve(self, wish: str | Mapping[str, Any] | None) -> SloLimits:
        """The limits a request asks for: a class by name, limits of its own over the default class, or the default."""
        if wish is None:
            return self.classes[self.default]
        if isinstance(wish, str):
            known = {**self.classes, BACKGROUND.name: self.classes.get(BACKGROUND.name, BACKGROUND)}
            if wish not in known:
                raise UserError(f"slo: no class {wish!r}; {did_you_mean(wish, known)}")
            return known[wish]
        if not isinstance(wish, Mapping):
            raise UserError(f"slo: {wish!r} is neither a class name nor an object of {', '.join(REQUEST_KEYS)}")
        return limits_of_request(wish, self.classes[self.default])


def limits_of_request(wish: Mapping[str, Any], default: SloLimits) -> SloLimits:
    """What the request does not say is not limited, but for the quality floor: that stays the default class's."""
    for key in wish:
        if key not in REQUEST_KEYS:
            raise UserError(f"slo.{key}: not a limit; {did_you_mean(str(key), REQUEST_KEYS)}")
    objective = wish.get("objective", "latency")
    if objective not in get_args(Objective):
        raise UserError(f"slo.objective: {objective!r} is none of {', '.join(get_args(Objective))}")
    floor = _number(wish, "min_quality")
    if floor is not None and not 0 <= floor <= 1:
        raise UserError(f"slo.min_quality: {floor:g} is not between 0 and 1; bf16 is 1")
    ttft_ms, tpot_ms = _limit(wish, "ttft_ms"), _limit(wish, "tpot_ms")
    if objective == "background":
        if ttft_ms is not None or tpot_ms is not None:
            raise UserError("slo.objective: background is promised no latency; leave ttft_ms and tpot_ms out")
        default = replace(BACKGROUND, min_quality=default.min_quality)
    return replace(
        default,
        name="request",
        ttft_ms=ttft_ms,
        tpot_ms=tpot_ms,
        objective=objective,
        min_quality=default.min_quality if floor is None else floor,
    )


@dataclass(slots=True, kw_only=True)
class Tally:
    offered: int = 0
    met: int = 0

    @property
    def attainment(self) -> float:
        return self.met / self.offered if self.offered else 1.0


@dataclass(slots=True, kw_only=True)
class Attainment:
    """Per class, over offered requests: one that was refused or broke counts as offered and not met."""

    by_class: dict[str, Tally] = field(default_factory=dict)

    def offered(self, limits: SloLimits) -> None:
        self.by_class.setdefault(limits.name, Tally()).offered += 1

    def served(self, limits: SloLimits, outcome: Outcome) -> None:
        """After `offered`, when the answer is complete."""
        if limits.met_by(outcome):
            self.by_class.setdefault(limits.name, Tally()).met += 1


def _within(measured: float | None, limit: float | None) -> bool:
    return measured is None or limit is None or measured <= limit


def _number(wish: Mapping[str, Any], key: str) -> float | None:
    value = wish.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value:
        raise UserError(f"slo.{key}: {value!r} is not a number")
    return float(value)


def _limit(wish: Mapping[str, Any], key: str) -> float | None:
    value = _number(wish, key)
    if value is not None and not 0 < value < float("inf"):
        raise UserError(f"slo.{key}: {value:g} is not > 0; give milliseconds, for example 500")
    return value
