"""Keys: made once, kept as hashes, read again when the file changes; and the limit of requests in flight."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from cluster.errors import UserError
from serve_app import auth
from serve_app.auth import ConcurrencyLimit, KeyFileGuard, create_key, read_keys
from serve_app.errors import ApiError


def test_a_key_is_kept_only_as_its_hash(keys_file: Path) -> None:
    key = create_key(keys_file, "ann")
    text = keys_file.read_text()
    assert key not in text
    assert key.removeprefix("qf-") not in text
    assert list(read_keys(keys_file).values()) == ["ann"]
    assert stat.S_IMODE(keys_file.stat().st_mode) == 0o600


def test_keys_are_added_and_all_of_them_work(keys_file: Path) -> None:
    keys = [create_key(keys_file, name) for name in ("ann", "ben")]
    guard = KeyFileGuard(keys_file)
    callers = {guard.caller(f"Bearer {key}") for key in keys}
    assert len(callers) == 2


@pytest.mark.parametrize("header", [None, "", "Bearer", "Bearer ", "Basic abc", "Bearer wrong", "Bearer é", "qf-abc"])
def test_without_a_known_key_it_is_401(keys_file: Path, header: str | None) -> None:
    create_key(keys_file, "ann")
    with pytest.raises(ApiError) as caught:
        KeyFileGuard(keys_file).caller(header)
    assert (caught.value.status, caught.value.code) == (401, "invalid_api_key")
    assert caught.value.headers["WWW-Authenticate"] == "Bearer"


def test_a_new_key_works_and_a_removed_one_ends_without_a_restart(
    keys_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auth, "RELOAD_PERIOD_S", 0.0)
    old = create_key(keys_file, "ann")
    guard = KeyFileGuard(keys_file)
    new = create_key(keys_file, "ben")
    assert guard.caller(f"Bearer {new}")
    keys_file.write_text(keys_file.read_text().splitlines()[1] + "\n")
    with pytest.raises(ApiError):
        guard.caller(f"Bearer {old}")
    keys_file.unlink()
    with pytest.raises(ApiError):
        guard.caller(f"Bearer {new}")


def test_a_broken_file_is_told_with_its_line(keys_file: Path) -> None:
    create_key(keys_file, "ann")
    with keys_file.open("a") as file:
        file.write("not a key\n")
    with pytest.raises(UserError, match=":2:"):
        read_keys(keys_file)
    with pytest.raises(UserError, match=":2:"):
        create_key(keys_file, "ben")


def test_a_place_that_cannot_be_written_is_told(keys_file: Path) -> None:
    keys_file.write_text("")
    with pytest.raises(UserError, match="--file"):
        create_key(keys_file / "below-a-file", "ann")


def test_the_limit_counts_each_caller_by_itself() -> None:
    limit = ConcurrencyLimit(2)
    with limit.held("ann"), limit.held("ann"), limit.held("ben"):
        assert limit.in_flight == 3
        with pytest.raises(ApiError) as caught:
            limit.enter("ann")
        assert (caught.value.status, caught.value.headers["Retry-After"]) == (429, "1")
    assert limit.in_flight == 0
    limit.enter("ann")
