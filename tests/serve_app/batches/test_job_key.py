"""The fleet's own jobs pass the guard by their key; everybody else as before."""

from __future__ import annotations

from pathlib import Path

import pytest

from serve_app.auth import KeyFileGuard, NoGuard, create_key
from serve_app.batches.job_key import JOBS, JobKeyGuard, new_job_key
from serve_app.errors import ApiError


def test_a_job_is_known_by_its_key(keys_file: Path) -> None:
    ann, job_key = create_key(keys_file, "ann"), new_job_key()
    guard = JobKeyGuard(KeyFileGuard(keys_file), job_key)
    assert guard.caller(f"Bearer {job_key}") == JOBS
    assert guard.caller(f"Bearer {ann}") == KeyFileGuard(keys_file).caller(f"Bearer {ann}") != JOBS
    for wrong in (None, "", "Bearer ", f"Bearer {new_job_key()}", f"Basic {job_key}"):
        with pytest.raises(ApiError):
            guard.caller(wrong)


def test_without_keys_everybody_is_one_caller_but_for_jobs() -> None:
    job_key = new_job_key()
    guard = JobKeyGuard(NoGuard(), job_key)
    assert guard.caller(None) == guard.caller("Bearer any") == "local"
    assert guard.caller(f"Bearer {job_key}") == JOBS
