"""Who may ask for what: API keys with their scopes and limits. Only hashes of keys are kept."""

import hashlib
import hmac
import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any

from daifuku.errors import InvalidRequest

READ, WRITE, METRICS = "read", "write", "metrics"
SCOPES = (READ, WRITE, METRICS)

_SHA256 = re.compile(r"[0-9a-f]{64}")
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")


@dataclass(frozen=True, kw_only=True)
class ApiKey:
    """One line of the file of keys. Each key is a tenant: it sees its own jobs only."""

    name: str
    sha256: str
    scopes: frozenset[str] = frozenset({READ, WRITE})
    requests_per_minute: int | float = 600
    max_jobs: int | None = None
    """Queued or running at a time; None for as many as the queue takes."""


LOCAL = ApiKey(name="local", sha256="", scopes=frozenset(SCOPES), requests_per_minute=float("inf"))
"""Everybody, where no keys are needed."""


def read_keys(path: Path) -> Sequence[ApiKey]:
    """The keys of a file. Raises InvalidRequest, which says what is wrong and never shows a hash."""
    try:
        with open(path, "rb") as file:
            found = tomllib.load(file)
        keys = [_key(one) for one in found.pop("key")]
        if found or not keys or len({key.name for key in keys}) != len(keys):
            raise ValueError
    except OSError as error:
        raise InvalidRequest(f"the keys {path} cannot be read: {error.strerror}.") from error
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InvalidRequest(
            f'{path} is no file of keys. A key that works: [[key]], name = "alice", sha256 = "64 hex digits", and '
            f"perhaps scopes = {list(SCOPES)}, requests_per_minute = 60, max_jobs = 10; each name once."
        ) from error
    return keys


def _key(one: Any) -> ApiKey:
    key = ApiKey(**{**one, "scopes": frozenset(one.get("scopes", ApiKey.scopes))})
    numbers = [key.requests_per_minute, *([] if key.max_jobs is None else [key.max_jobs])]
    sound = _NAME.fullmatch(key.name) and _SHA256.fullmatch(key.sha256) and key.scopes <= set(SCOPES)
    if not sound or any(isinstance(n, bool) or not isinstance(n, int | float) or n <= 0 for n in numbers):
        raise ValueError
    return key


@dataclass(kw_only=True)
class _Bucket:
    tokens: float
    filled_at: float


@dataclass(kw_only=True)
class Doorkeeper:
    """Tells keys apart, and counts what each asks for."""

    keys: Sequence[ApiKey] = ()
    """None: everybody is let in."""
    _buckets: dict[str, _Bucket] = field(default_factory=dict)

    def find(self, authorization: str | None) -> ApiKey | None:
        """Whose key a header has; None for nobody's."""
        if not self.keys:
            return LOCAL
        scheme, _, secret = (authorization or "").partition(" ")
        if scheme.lower() != "bearer":
            return None
        digest = hashlib.sha256(secret.strip().encode("utf-8", "surrogateescape")).hexdigest()
        matches = [key for key in self.keys if hmac.compare_digest(key.sha256, digest)]
        return matches[0] if matches else None

    def wait_s(self, key: ApiKey) -> float:
        """Counts a request. 0 where it may go on, else how long until the next one may."""
        if key.requests_per_minute == float("inf"):
            return 0.0
        rate, now = key.requests_per_minute / 60, monotonic()
        # Ten seconds' worth may come at once.
        most = max(1.0, 10 * rate)
        bucket = self._buckets.setdefault(key.name, _Bucket(tokens=most, filled_at=now))
        bucket.tokens = min(most, bucket.tokens + rate * (now - bucket.filled_at))
        bucket.filled_at = now
        if bucket.tokens < 1:
            return (1 - bucket.tokens) / rate
        bucket.tokens -= 1
        return 0.0
