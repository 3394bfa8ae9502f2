"""The request router of the variants' deployments: a call goes to the replica that it names; nothing is chosen here.

Ray Serve gives a handle no way to name a replica; a RequestRouter sees the arguments of a call, and so may.
"""

from __future__ import annotations

from ray.serve.request_router import PendingRequest, RequestRouter, RunningReplica

from serve_app.replica_gone import ReplicaGone


class ReplicaPin(RequestRouter):
    """Routes by the keyword argument `replica_id`.

    A replica takes whatever is sent to it, because admission is the engine's: so there is no rejection protocol, which
    would cost a message before each answer.
    """

    supports_rejection_protocol = False

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        if pending_request is None:
            return []
        wanted = pending_request.kwargs["replica_id"]
        for replica in candidate_replicas:
            if replica.replica_id.unique_id == wanted:
                return [[replica]]
        # Without an answer Serve would ask again for ever. It looks at the request's future when it is given
        # candidates, so it is given some.
        if not pending_request.future.done():
            pending_request.future.set_exception(ReplicaGone(f"replica {wanted} is not running"))
        return [candidate_replicas]
