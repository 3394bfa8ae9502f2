"""The key by which a fleet's own jobs call it, made when it is deployed and kept in no file; it starts no job."""

from __future__ import annotations

import hmac
import secrets

from serve_app.auth import Guard, digest

JOBS = "jobs"
"""The caller that they are."""


def new_job_key() -> str:
    return secrets.token_urlsafe(32)


class JobKeyGuard:
    """Another guard, and the one key besides."""

    def __init__(self, guard: Guard, job_key: str) -> None:
        self._guard = guard
        self._digest = digest(job_key)

    def caller(self, authorization: str | None) -> str:
        """ApiError 401 where the other guard knows nobody either."""
        key = (authorization or "").removeprefix("Bearer ").strip()
        if hmac.compare_digest(digest(key), self._digest):
            return JOBS
        return self._guard.caller(authorization)
