"""FleetPolicy: Ray Serve's application-level autoscaling policy around KvAwarePolicy; it imports no Ray.

Serve calls it ten times a second with one context a deployment; it makes an observation of them and has it decided on
once an interval, or at once where requests wait for what does not run. In between it gives the last targets, and before
the first decision what is there. It changes no decision, so the log of them is what happened.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from autoscaling.decision_log import opened_log
from autoscaling.fleet_description import FleetDescription, VariantTerms
from autoscaling.scaling import FleetObservation, ScalingDecision
from autoscaling.serve_contexts import Report, ServingContext, reports
from autoscaling.serving_stats import (
    AWAITED,
    BURST,
    DRAINING,
    LOAD_FIELDS,
    NAMED,
    QUEUED,
    Stats,
    load_of,
    of_variants,
    since,
    traffic_of,
)
from cluster.load import Load

INGRESS = "ingress"
log = logging.getLogger("ray.serve")

Id = TypeVar("Id", bound=Hashable)


@dataclass(slots=True, kw_only=True)
class Starting:
    """The replicas of a variant that were asked for and do not run."""

    running: int
    asked_s: deque[float | None] = field(default_factory=deque)
    """Oldest first; None: asked for before this policy was there."""

    def follow(self, running: int, target: int, now_s: float) -> list[float]:
        """Seconds that replicas took which run since the last call."""
        took_s = []
        for _ in range(max(0, running - self.running)):
            asked_s = self.asked_s.popleft() if self.asked_s else None
            took_s += [] if asked_s is None else [now_s - asked_s]
        self.running = running
        missing = max(0, target - running)
        while len(self.asked_s) > missing:
            self.asked_s.pop()
        self.asked_s.extend([now_s] * (missing - len(self.asked_s)))
        return took_s


class FleetPolicy:
    """Everything it is made from is JSON: `fleet` is a FleetDescription, `log_path` where decisions are written to.

    `on_decision(now_s, decision)` and `on_ready(variant, cold_start_s)` are told what came of it.
    """

    def __init__(
        self,
        *,
        fleet: Mapping[str, Any],
        log_path: str | None = None,
        dry_run: bool = False,
        on_decision: Callable[[float, ScalingDecision], None] | None = None,
        on_ready: Callable[[str, float], None] | None = None,
    ) -> None:
        self._fleet = msgspec.convert(fleet, FleetDescription)
        self._planner = self._fleet.policy()
        self._log = opened_log(Path(log_path), self._fleet, dry_run=dry_run) if log_path else None
        self._on_decision = on_decision
        self._on_ready = on_ready
        self._starting: dict[str, Starting] = {}
        self._targets: dict[str, int] = {}
        self._named_s: dict[str, float] = {}
        self._counted: dict[str, Report] | None = None
        self._began_s: float | None = None
        self._decided_s = 0.0

    def __call__(self, contexts: Mapping[Id, ServingContext]) -> tuple[dict[Id, int], dict[Id, dict[str, Any]]]:
        variants = {c.deployment_name: c for c in contexts.values() if c.deployment_name in self._fleet.variants}
        if not variants:
            return {}, {}
        now_s = max(context.current_time or 0.0 for context in variants.values())
        if self._began_s is None:
            self._began_s = self._decided_s = now_s
        self._follow_starts(variants, now_s)
        ingresses = {
            name: report
            for context in contexts.values()
            if context.deployment_name == INGRESS
            for name, report in reports(context).items()
        }
        if self._counted is None:
            # What was counted before this policy was there belongs to no interval of its own.
            self._counted = dict(ingresses) or None
        elif self._is_due(now_s, ingresses):
            self._decide(variants, ingresses, now_s)
        targets = {name: self._targets.get(name, each.target_num_replicas) for name, each in variants.items()}
        return {id: targets[c.deployment_name] for id, c in contexts.items() if c.deployment_name in targets}, {}

    def _is_due(self, now_s: float, ingresses: Mapping[str, Report]) -> bool:
        """At once where requests arrive and nothing runs that could serve them."""
        if now_s - self._decided_s >= self._fleet.settings.interval_s:
            return True
        growth, _ = self._since_last(ingresses)
        there = {name for name, each in self._starting.items() if each.running or each.asked_s}
        named = {name for name, count in of_variants(growth, NAMED, self._fleet.variants).items() if count > 0}
        arrived = any(growth.get(f"arrivals/{name}", 0) for name in self._fleet.classes)
        return bool(named - there) or (arrived and not there)

    def _decide(self, variants: Mapping[str, ServingContext], ingresses: Mapping[str, Report], now_s: float) -> None:
        growth, window_s = self._since_last(ingresses)
        self._note_named(growth, ingresses, now_s)
        draining: dict[str, int] = {}
        for report in ingresses.values():
            for name, count in of_variants(report.stats, DRAINING, variants).items():
                draining[name] = max(count, draining.get(name, 0))  # every ingress counts the same ones
        observation = FleetObservation(
            now_s=now_s,
            loads=tuple(load for name, context in variants.items() for load in self._loads(name, context)),
            starting={
                name: tuple(self._began_s or now_s if asked_s is None else asked_s for asked_s in each.asked_s)
                for name, each in self._starting.items()
            },
            draining=draining,
            traffic=tuple(
                traffic_of(
                    growth,
                    name,
                    window_s,
                    waiting=_total(ingresses, f"{QUEUED}/{name}"),
                    burst=_total(ingresses, f"{BURST}/{name}"),
                )
                for name in self._fleet.classes
            ),
            began_s=self._began_s,
            named_s=dict(self._named_s),
        )
        decision = self._planner.decide(observation)
        self._targets = dict(decision.replicas)
        self._counted, self._decided_s = dict(ingresses), now_s
        self._write(observation, decision)
        if self._on_decision is not None:
            self._on_decision(now_s, decision)

    def _since_last(self, ingresses: Mapping[str, Report]) -> tuple[Stats, float]:
        """The growth of all ingresses' counters together, and over how long; 0 s where none has reported anew."""
        assert self._counted is not None
        total: Stats = {}
        window_s = 0.0
        for name, report in ingresses.items():
            before = self._counted.get(name)
            for key, count in since(before.stats if before else {}, report.stats).items():
                total[key] = total.get(key, 0.0) + count
            window_s = max(window_s, report.at_s - (before.at_s if before else self._decided_s))
        return total, max(0.0, window_s)

    def _note_named(self, growth: Mapping[str, float], ingresses: Mapping[str, Report], now_s: float) -> None:
        named = of_variants(growth, NAMED, self._fleet.variants)
        for variant, count in named.items():
            if count > 0 or _total(ingresses, f"{AWAITED}/{variant}"):
                self._named_s[variant] = now_s

    def _follow_starts(self, variants: Mapping[str, ServingContext], now_s: float) -> None:
        for name, context in variants.items():
            running, target = context.current_num_replicas, context.target_num_replicas
            if name not in self._starting:
                unknown: deque[float | None] = deque([None] * max(0, target - running))
                self._starting[name] = Starting(running=running, asked_s=unknown)
            for took_s in self._starting[name].follow(running, target, now_s):
                if self._on_ready is not None:
                    self._on_ready(name, took_s)

    def _loads(self, variant: str, context: ServingContext) -> list[Load]:
        """One a running replica; of one that has said nothing yet, an idle one."""
        told = reports(context)
        terms = self._fleet.variants[variant]
        return [_load(replica.unique_id, terms, told.get(replica.unique_id)) for replica in context.running_replicas]

    def _write(self, observation: FleetObservation, decision: ScalingDecision) -> None:
        if self._log is None:
            return
        try:
            self._log.append(observation.now_s, observation, decision, self._planner.memory)
        except OSError as error:
            log.error("the decision log ends here: %s", error)
            self._log = None


def _total(ingresses: Mapping[str, Report], name: str) -> int:
    return round(sum(report.stats.get(name, 0.0) for report in ingresses.values()))


def _load(replica_id: str, terms: VariantTerms, report: Report | None) -> Load:
    if report is None or not LOAD_FIELDS.keys() <= report.stats.keys():
        return Load(
            replica_id=replica_id,
            variant=terms.variant.name,
            measured_at_s=0.0,
            kv_tokens_capacity=terms.kv_capacity_tokens,
            kv_tokens_used=0,
        )
    return load_of(report.stats, replica_id, terms.variant.name)
