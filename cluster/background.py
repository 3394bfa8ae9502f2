"""Where a background request goes: to the replica with the least to do, as long as one has room; it keeps no limit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cluster.assessment import RouteQuery, predict_for
from cluster.choice import Choice, Refusal, choice_of
from cluster.cost_model import CostModel
from cluster.prediction import ReplicaLimits
from cluster.replica_view import ReplicaView
from cluster.slo import meets_floor
from cluster.ties import Ties
from cluster.waiting_room import most_requests

RETRY_S = 1.0
"""A place becomes free with every answer that ends; to ask sooner would load the ingress for nothing."""


def place_background(
    query: RouteQuery,
    views: Sequence[ReplicaView],
    models: Mapping[str, CostModel],
    limits: ReplicaLimits,
    num_ingresses: int,
    ties: Ties,
) -> Choice | Refusal:
    """Of the replicas with a quality that will do, or of the variant that the request names.

    Its predicted times are those of an online request there: nobody knows how long it gives way.
    """
    floor = 0.0 if query.model_variant is not None else query.slo.min_quality
    fitting = [view for view in views if meets_floor(models[view.load.variant].variant.quality, floor)]
    most = most_requests("background", max_sequences=limits.max_sequences, max_waiting=limits.max_waiting)
    able = [view for view in fitting if view.background_requests(num_ingresses) < most]
    if not able:
        what = query.model_variant or f"quality>={floor:.2f}"
        why = (
            f"no room for background work at {what}" if fitting else f"no replica of {what} runs; background wakes none"
        )
        return Refusal(reason=why, retry_after_s=RETRY_S, fallback=query.slo.fallback)

    def busy(view: ReplicaView) -> float:
        return view.background_requests(num_ingresses) + view.load.decode_sequences + view.load.waiting_requests

    view = ties.pick_by(able, busy)
    variant, backlog = view.load.variant, view.backlog(fresh=True, num_ingresses=num_ingresses)
    reason = f"background, beside {view.load.decode_sequences + view.load.waiting_requests} requests"
    return choice_of(variant, view.load.replica_id, predict_for(query, models[variant], limits, backlog), reason)
