"""ServingPolicy: FleetPolicy in Serve's controller, with all that touches Ray and the disk; it decides nothing.

Serve pickles this module by value, so it holds one small class and imports the rest.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from copy import copy
from pathlib import Path
from typing import Any

from ray.serve.autoscaling_policy import default_autoscaling_policy
from ray.serve.config import AutoscalingContext

from autoscaling.policy import FleetPolicy
from autoscaling.scaling import ScalingDecision
from autoscaling.serve_contexts import reports
from autoscaling.serving_stats import WAITING
from serve_app.cold_starts import add_cold_start
from serve_app.decision_board import Posted, open_board, packed


class ServingPolicy:
    def __init__(
        self,
        *,
        fleet: Mapping[str, Any],
        log_path: str | None,
        dry_run: bool,
        cold_start_paths: Mapping[str, str],
    ) -> None:
        self._policy = FleetPolicy(
            fleet=fleet, log_path=log_path, dry_run=dry_run, on_decision=self._post, on_ready=self._keep
        )
        self._log_path = log_path
        self._dry_run = dry_run
        self._cold_start_paths = cold_start_paths
        self._board = open_board()

    def __call__(self, contexts: Mapping[Any, AutoscalingContext]) -> tuple[dict[Any, int | float], dict[Any, Any]]:
        """The controller's loop deploys and heals after this call, so a bug here may cost scaling and nothing else."""
        try:
            targets, states = self._policy(contexts)
            if self._dry_run:
                return {id: by_ongoing_requests(contexts, id) for id in targets}, {}
        except Exception:
            logging.getLogger("ray.serve").exception("the scaling policy failed; the fleet stays as it is")
            return {}, {}
        return dict(targets), states

    def _post(self, now_s: float, decision: ScalingDecision) -> None:
        """Returns before it has arrived."""
        posted = Posted(at_s=now_s, decision=decision, dry_run=self._dry_run, log_path=self._log_path)
        self._board.post.remote(packed(posted))

    def _keep(self, variant: str, took_s: float) -> None:
        try:
            add_cold_start(Path(self._cold_start_paths[variant]), took_s)
        except OSError as error:
            logging.getLogger("ray.serve").warning("a cold start of %s was not kept: %s", variant, error)


def by_ongoing_requests(contexts: Mapping[Any, AutoscalingContext], id: Any) -> int | float:
    """Serve's default policy. It counts calls, of which an ingress makes one for all its streams of a replica; so it is
    told the requests."""
    context = copy(contexts[id])
    context.total_num_requests = _ongoing(contexts, context)
    target, _ = default_autoscaling_policy(context)
    return target


def _ongoing(contexts: Mapping[Any, AutoscalingContext], context: AutoscalingContext) -> float:
    """Its replicas'; where it has none, those that wait in the ingresses."""
    counted = ("decode_sequences", "waiting_requests") if context.current_num_replicas else (WAITING,)
    of = [context] if context.current_num_replicas else contexts.values()
    return sum(report.stats.get(name, 0.0) for each in of for report in reports(each).values() for name in counted)
