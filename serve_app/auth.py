"""API keys and how many requests each may have in flight; it knows no HTTP beyond the Authorization header's value.

A key is 32 random bytes, so a plain SHA-256 of it is safe to keep: there is no dictionary to try, and a slow hash
(scrypt, 50 ms) would only tax every request. The file holds one JSON object a line and no key.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from cluster.errors import UserError
from serve_app.errors import too_many_requests, unauthorized

KEY_PREFIX = "qf-"
RELOAD_PERIOD_S = 1.0


def digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def create_key(file: Path, name: str) -> str:
    """A new key, its hash appended to the file; the key itself is kept nowhere."""
    key = KEY_PREFIX + secrets.token_urlsafe(32)
    entry = {"name": name, "sha256": digest(key), "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
    try:
        if file.exists():
            read_keys(file)
        file.parent.mkdir(parents=True, exist_ok=True)
        with os.fdopen(os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600), "a", encoding="utf-8") as out:
            os.fchmod(out.fileno(), 0o600)
            out.write(json.dumps(entry) + "\n")
    except OSError as error:
        raise UserError(f"{file}: cannot write the key file ({error.strerror}); give another --file") from None
    return key


def read_keys(file: Path) -> dict[str, str]:
    """Hash -> name."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"auth.keys_file: cannot read {file} ({error}); `quantfleet keys create` makes one") from None
    keys = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            keys[str(entry["sha256"])] = str(entry["name"])
        except (ValueError, KeyError, TypeError):
            raise UserError(f"{file}:{number}: not a line that `quantfleet keys create` writes; remove it") from None
    return keys


class Guard(Protocol):
    """Who a request comes from, by its Authorization header; raises ApiError 401."""

    def caller(self, authorization: str | None) -> str: ...


class NoGuard:
    """On loopback without a key file: everybody is one caller, and whatever key a client sends is fine."""

    def caller(self, authorization: str | None) -> str:
        return "local"


class KeyFileGuard:
    """Keys of a file, read again when it changes, so that a new key works and a removed one ends without a restart."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._keys = read_keys(file)
        self._version = self._file_version()
        self._checked_at_s = time.monotonic()

    def caller(self, authorization: str | None) -> str:
        scheme, _, key = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not key.strip():
            raise unauthorized("No API key: send it as 'Authorization: Bearer KEY'")
        self._reload()
        wanted = digest(key.strip())
        known = [name for hashed, name in self._keys.items() if hmac.compare_digest(hashed, wanted)]
        if not known:
            raise unauthorized("Incorrect API key provided")
        return wanted

    def _reload(self) -> None:
        if time.monotonic() - self._checked_at_s < RELOAD_PERIOD_S:
            return
        self._checked_at_s = time.monotonic()
        version = self._file_version()
        if version == self._version:
            return
        self._version = version
        try:
            self._keys = read_keys(self._file)
        except UserError:
            self._keys = {}  # a file that is gone or broken lets nobody in, rather than whoever was in it before

    def _file_version(self) -> tuple[int, int] | None:
        try:
            status = self._file.stat()
        except OSError:
            return None
        return status.st_mtime_ns, status.st_size


class ConcurrencyLimit:
    """At most `limit` requests of a caller at once, in this ingress process."""

    def __init__(self, limit: int, key: str = "auth.max_concurrent_requests") -> None:
        """`key` of fleet.yaml says it."""
        self._limit = limit
        self._key = key
        self._in_flight: Counter[str] = Counter()

    @property
    def in_flight(self) -> int:
        return self._in_flight.total()

    def enter(self, caller: str) -> None:
        if self._in_flight[caller] >= self._limit:
            raise too_many_requests(self._limit, self._key)
        self._in_flight[caller] += 1

    def leave(self, caller: str) -> None:
        self._in_flight[caller] -= 1
        if not self._in_flight[caller]:
            del self._in_flight[caller]

    @contextmanager
    def held(self, caller: str) -> Iterator[None]:
        self.enter(caller)
        try:
            yield
        finally:
            self.leave(caller)
