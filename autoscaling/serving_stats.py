"""What replicas and ingresses tell the scaling policy, as Ray Serve carries it: numbers by name; it decides nothing.

Serve's `record_autoscaling_stats` takes nothing but numbers, and one that is none disables it for the replica's life.
Counters only grow, so that a report that is lost costs nothing: the policy takes differences.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, fields

from autoscaling.bursts import BurstMeter
from autoscaling.scaling import ClassTraffic
from cluster.load import Load

Stats = dict[str, float]

LOAD_FIELDS = {field.name: float if field.type == "float" else int for field in fields(Load) if field.type != "str"}
"""By name, as what they are read again."""
NAMED, DRAINING, WAITING = "named", "draining", "waiting"
QUEUED, AWAITED, BURST = "queued", "awaited", "burst"


def load_stats(load: Load) -> Stats:
    """A Load without its names, which Serve knows."""
    return {name: float(getattr(load, name)) for name in LOAD_FIELDS}


def load_of(stats: Mapping[str, float], replica_id: str, variant: str) -> Load:
    """KeyError where the stats are not whole."""
    numbers = {name: kind(stats[name]) for name, kind in LOAD_FIELDS.items()}
    return Load(replica_id=replica_id, variant=variant, **numbers)  # type: ignore[arg-type]


@dataclass(slots=True, kw_only=True)
class ClassCounts:
    """Of one class, since the ingress started."""

    arrivals: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0
    finished: int = 0
    refused: int = 0


class TrafficCounters:
    """Counts requests where they arrive, before any is routed: those that are refused are demand too."""

    def __init__(
        self,
        classes: Iterable[str],
        variants: Iterable[str],
        default_class: str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._classes = {name: ClassCounts() for name in classes}
        self._bursts = {name: BurstMeter() for name in self._classes}
        self._named = dict.fromkeys(variants, 0)
        self._default = default_class

    def arrived(self, slo_class: str, prompt_tokens: int, variant: str | None) -> None:
        """`variant`: where the request names one."""
        counts = self._of(slo_class)
        self._bursts[self._known(slo_class)].arrived(self._clock())
        counts.arrivals += 1
        counts.prompt_tokens += prompt_tokens
        if variant is not None:
            self._named[variant] += 1

    def finished(self, slo_class: str, output_tokens: int) -> None:
        counts = self._of(slo_class)
        counts.finished += 1
        counts.output_tokens += output_tokens

    def refused(self, slo_class: str) -> None:
        self._of(slo_class).refused += 1

    def stats(
        self, *, waiting: int, queued: Mapping[tuple[str, str | None], int], draining: Mapping[str, int]
    ) -> Stats:
        """`waiting`: requests without a first token; `queued`: of those, the ones that no replica has, by class and the
        variant that they name; `draining`: by variant, the replicas that Serve stops and that still stream to this
        ingress."""
        found, now_s = {WAITING: float(waiting)}, self._clock()
        found |= dict.fromkeys([f"{QUEUED}/{name}" for name in self._classes], 0.0)
        found |= dict.fromkeys([f"{AWAITED}/{variant}" for variant in self._named], 0.0)
        for (slo_class, variant), count in queued.items():
            found[f"{QUEUED}/{self._known(slo_class)}"] += count
            if variant is not None:
                found[f"{AWAITED}/{variant}"] += count
        found |= {f"{NAMED}/{variant}": float(count) for variant, count in self._named.items()}
        found |= {f"{DRAINING}/{variant}": float(count) for variant, count in draining.items()}
        for name, counts in self._classes.items():
            found |= {f"{field}/{name}": float(count) for field, count in asdict(counts).items()}
            found[f"{BURST}/{name}"] = float(self._bursts[name].most(now_s))
        return found

    def _of(self, slo_class: str) -> ClassCounts:
        return self._classes[self._known(slo_class)]

    def _known(self, slo_class: str) -> str:
        """Limits of a request's own count to the default class, which they were made from."""
        return slo_class if slo_class in self._classes else self._default


def since(before: Mapping[str, float], after: Mapping[str, float]) -> Stats:
    """The growth of every counter."""
    return {name: value - before.get(name, 0.0) for name, value in after.items()}


def traffic_of(
    growth: Mapping[str, float], slo_class: str, window_s: float, *, waiting: int, burst: int
) -> ClassTraffic:
    counts = {field.name: round(growth.get(f"{field.name}/{slo_class}", 0.0)) for field in fields(ClassCounts)}
    return ClassTraffic(slo_class=slo_class, window_s=window_s, waiting=waiting, burst=burst, **counts)


def of_variants(stats: Mapping[str, float], kind: str, variants: Iterable[str]) -> dict[str, int]:
    """`kind`: NAMED, AWAITED or DRAINING."""
    return {variant: round(stats.get(f"{kind}/{variant}", 0.0)) for variant in variants}
