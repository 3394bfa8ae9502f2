"""RequestMetrics: what becomes of requests, recorded a few times in the life of each; it routes none."""

from __future__ import annotations

from collections.abc import Iterable

from cluster.choice import Choice
from cluster.slo import Outcome, SloLimits
from serve_app.metrics.catalogue import CATALOGUE
from serve_app.metrics.meter import Meter

OWN_LIMITS = "request"
"""The class of requests that bring limits of their own, as cluster.slo names it."""


class RequestMetrics:
    def __init__(self, meter: Meter, classes: Iterable[str], variants: Iterable[str]) -> None:
        self._meter = meter
        by_class = (CATALOGUE.offered, CATALOGUE.met, CATALOGUE.rejected, CATALOGUE.failed, CATALOGUE.cancelled)
        by_variant = (CATALOGUE.served, CATALOGUE.degraded, CATALOGUE.prompt_tokens, CATALOGUE.generated_tokens)
        variants = list(variants)
        for slo_class in (*classes, OWN_LIMITS):
            for metric in by_class:
                meter.begin(metric, slo_class=slo_class)
            for metric in by_variant:
                for variant in variants:
                    meter.begin(metric, slo_class=slo_class, variant=variant)

    def offered(self, slo: SloLimits) -> None:
        self._meter.add(CATALOGUE.offered, 1, slo_class=slo.name)

    def rejected(self, slo: SloLimits) -> None:
        self._meter.add(CATALOGUE.rejected, 1, slo_class=slo.name)

    def failed(self, slo: SloLimits) -> None:
        self._meter.add(CATALOGUE.failed, 1, slo_class=slo.name)

    def begun(self, slo: SloLimits, choice: Choice, prompt_tokens: int, ttft_ms: float) -> None:
        """Its first token has come."""
        labels = {"slo_class": slo.name, "variant": choice.variant}
        self._meter.add(CATALOGUE.prompt_tokens, prompt_tokens, **labels)
        self._meter.observe(CATALOGUE.ttft, ttft_ms / 1e3, **labels)
        if choice.degraded:
            self._meter.add(CATALOGUE.degraded, 1, **labels)
        if choice.predicted_ttft_ms > 0:
            self._meter.observe(CATALOGUE.ttft_ratio, ttft_ms / choice.predicted_ttft_ms, variant=choice.variant)

    def served(self, slo: SloLimits, choice: Choice, outcome: Outcome, output_tokens: int, duration_s: float) -> None:
        """Its last token has come."""
        labels = {"slo_class": slo.name, "variant": choice.variant}
        self._meter.add(CATALOGUE.served, 1, **labels)
        self._meter.add(CATALOGUE.generated_tokens, output_tokens, **labels)
        self._meter.observe(CATALOGUE.duration, duration_s, **labels)
        if slo.met_by(outcome):
            self._meter.add(CATALOGUE.met, 1, slo_class=slo.name)
        if outcome.tpot_ms is not None:
            self._meter.observe(CATALOGUE.tpot, outcome.tpot_ms / 1e3, **labels)
            if choice.predicted_tpot_ms > 0:
                ratio = outcome.tpot_ms / choice.predicted_tpot_ms
                self._meter.observe(CATALOGUE.tpot_ratio, ratio, variant=choice.variant)

    def cancelled(self, slo: SloLimits) -> None:
        """Its client went away."""
        self._meter.add(CATALOGUE.cancelled, 1, slo_class=slo.name)

    def ended_early(self, slo: SloLimits, choice: Choice, output_tokens: int, *, is_broken: bool) -> None:
        """After the first token; broken: its replica was lost, else its client went away."""
        (self.failed if is_broken else self.cancelled)(slo)
        self._meter.add(CATALOGUE.generated_tokens, output_tokens, slo_class=slo.name, variant=choice.variant)
