"""What a job is: the row of the database as the rest of the server sees it."""

import json
import secrets
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

from daifuku.server.schema import END_STATES

Kind = Literal["generate", "decode"]

_JSON = ("request", "result")
_TIMES = ("lease_until", "created_at", "started_at", "ended_at", "files_gone_at", "deleted_at")


@dataclass(frozen=True, kw_only=True)
class NewJob:
    """A job that has not been accepted yet."""

    tenant: str
    model: str
    request: Mapping[str, Any]
    """A resolved request as JSON: nothing in it is left to chance, the seed included."""
    kind: Kind = "generate"
    parent: str | None = None
    """The job whose request was varied, or whose latents are decoded."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """One job as it stands in the database. Times are seconds since 1970."""

    number: int
    """Its place among all jobs that were ever accepted."""
    id: str
    tenant: str
    kind: Kind
    parent: str | None
    model: str
    request: Mapping[str, Any]
    state: str
    fence: int
    """How often it was claimed. Whoever holds an older number may not change the job any more."""
    lease_until: float | None
    deaths: int
    """Workers that died while they had it, since it last came further."""
    restarts: int
    """How often the server ended under it."""
    created_at: float
    started_at: float | None
    ended_at: float | None
    error_code: str | None
    error_message: str | None
    result: Mapping[str, Any] | None
    """What was published: files by variant with name, bytes and sha256; the hash of the frames; timings."""
    num_bytes: int
    files_gone_at: float | None
    deleted_at: float | None

    @property
    def has_ended(self) -> bool:
        return self.state in END_STATES


def job_of(row: sqlite3.Row) -> Job:
    """The job that a row holds."""
    values: dict[str, Any] = {each.name: row[each.name] for each in fields(Job)}
    for name in _JSON:
        values[name] = None if values[name] is None else json.loads(values[name])
    for name in _TIMES:
        # What RETURNING gives is a whole number where the time is one.
        values[name] = None if values[name] is None else float(values[name])
    return Job(**values)


def new_id() -> str:
    """A name for a job that nobody can guess."""
    return "video_" + secrets.token_hex(16)
