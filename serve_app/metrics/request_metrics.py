"""RequestMetrics: what becomes of requests, recorded a few times in the life of each; it routes none."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from cluster.choice import Choice
from cluster.metric_catalogue import CATALOGUE
from cluster.slo import Outcome, SloLimits
from serve_app.dispatch import FirstToken
from serve_app.metrics.meter import Meter

OWN_LIMITS = "request"
"""The class of requests that bring limits of their own, as cluster.slo names it."""


BACKGROUND = "background"
"""Class of requests that keep no limits: of theirs only what they take and are given is counted."""
BY_CLASS = (CATALOGUE.offered, CATALOGUE.met, CATALOGUE.rejected, CATALOGUE.failed, CATALOGUE.cancelled)
BY_CLASS_AND_VARIANT = (
    CATALOGUE.served,
    CATALOGUE.degraded,
    CATALOGUE.prompt_tokens,
    CATALOGUE.generated_tokens,
    CATALOGUE.request_seconds,
)


class RequestMetrics:
    def __init__(self, meter: Meter, classes: Iterable[str], shares: Mapping[str, float]) -> None:
        """`classes` of online requests; `shares` of an accelerator, by variant."""
        self._meter = meter
        self._shares = shares
        online = (*classes, OWN_LIMITS)
        for slo_class in online:
            for metric in BY_CLASS:
                meter.begin(metric, slo_class=slo_class)
        for slo_class in (*online, BACKGROUND):
            for metric in BY_CLASS_AND_VARIANT:
                for variant in shares:
                    meter.begin(metric, slo_class=slo_class, variant=variant)

    def offered(self, slo: SloLimits) -> None:
        if not slo.is_background:
            self._meter.add(CATALOGUE.offered, 1, slo_class=slo.name)

    def rejected(self, slo: SloLimits) -> None:
        if not slo.is_background:
            self._meter.add(CATALOGUE.rejected, 1, slo_class=slo.name)

    def failed(self, slo: SloLimits) -> None:
        if not slo.is_background:
            self._meter.add(CATALOGUE.failed, 1, slo_class=slo.name)

    def begun(
        self, slo: SloLimits, choice: Choice, prompt_tokens: int, ttft_ms: float, first_token: FirstToken
    ) -> None:
        """Its first token has come."""
        labels = _labels(slo, choice)
        self._meter.add(CATALOGUE.prompt_tokens, prompt_tokens, **labels)
        cost_s = choice.predicted_cost_s * self._shares.get(choice.variant, 1.0)
        self._meter.add(CATALOGUE.request_seconds, cost_s, **labels)
        if slo.is_background:
            return
        self._meter.observe(CATALOGUE.ttft, ttft_ms / 1e3, **labels)
        self._meter.observe(CATALOGUE.queue, first_token.waited_s, **labels)
        on_its_way_s = ttft_ms / 1e3 - first_token.waited_s - first_token.prefill_s
        self._meter.observe(CATALOGUE.framework, max(0.0, on_its_way_s), variant=choice.variant)
        if choice.degraded:
            self._meter.add(CATALOGUE.degraded, 1, **labels)
        if choice.predicted_ttft_ms > 0:
            self._meter.observe(CATALOGUE.ttft_ratio, ttft_ms / choice.predicted_ttft_ms, variant=choice.variant)

    def served(self, slo: SloLimits, choice: Choice, outcome: Outcome, output_tokens: int, duration_s: float) -> None:
        """Its last token has come."""
        labels = _labels(slo, choice)
        self._meter.add(CATALOGUE.served, 1, **labels)
        self._meter.add(CATALOGUE.generated_tokens, output_tokens, **labels)
        if slo.is_background:
            return
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
        if not slo.is_background:
            self._meter.add(CATALOGUE.cancelled, 1, slo_class=slo.name)

    def ended_early(self, slo: SloLimits, choice: Choice, output_tokens: int, *, is_broken: bool) -> None:
        """After the first token; broken: its replica was lost, else its client went away."""
        (self.failed if is_broken else self.cancelled)(slo)
        self._meter.add(CATALOGUE.generated_tokens, output_tokens, **_labels(slo, choice))


def _labels(slo: SloLimits, choice: Choice) -> dict[str, str]:
    return {"slo_class": BACKGROUND if slo.is_background else slo.name, "variant": choice.variant}
