"""What clients of Cog know about a job beside the video: their own name for it, and who is told when it ends."""

import json
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from daifuku.server.feed import Progress
from daifuku.server.jobs import Job, NewJob
from daifuku.server.store import Accepted, Key, Room, Store

STATUS: Mapping[str, str] = {
    "queued": "starting",
    "running": "processing",
    "completed": "succeeded",
    "failed": "failed",
    "cancelled": "canceled",
}
"""What Cog calls a state."""

START, OUTPUT, LOGS, COMPLETED = "start", "output", "logs", "completed"
EVENTS = (START, OUTPUT, LOGS, COMPLETED)
"""What a webhook may be told about."""

_BAR = 10


class NameReused(Exception):
    """The prediction of that name had another input."""


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What a client asks for beside the video."""

    name: str | None
    """Its id for the prediction; None: the job's own."""
    input_sha256: str
    base_url: str
    """Of links in what is sent."""
    webhook: str | None
    events: Sequence[str]


@dataclass(frozen=True, kw_only=True)
class Watched:
    """A job whose course somebody wants to hear of."""

    job_id: str
    name: str
    base_url: str
    webhook: str
    events: Sequence[str]


@dataclass(frozen=True, kw_only=True)
class Due:
    """The end of a job that has to be told."""

    job_id: str
    name: str
    base_url: str
    webhook: str
    tries: int


class Predictions:
    """Reads and changes those tables, within a change of a `Store`.

    A trigger puts the end of a job with a webhook into the outbox, in the transaction that ends the job.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._db = store.connection

    def accept(self, wish: Wish, jobs: Sequence[NewJob], room: Room, key: Key | None, now: float) -> Accepted:
        """`Store.accept` of one job, or the job that had this name before. Raises what that raises and NameReused."""
        (new,) = jobs
        known = None if wish.name is None else self._known(new.tenant, wish.name, wish.input_sha256)
        if known is not None:
            return Accepted(jobs=[known], replayed=True)
        accepted = self._store.accept(jobs, room, key, now)
        (job,) = accepted.jobs
        if not accepted.replayed and (wish.name is not None or wish.webhook is not None):
            self._db.execute(
                "INSERT INTO predictions VALUES (?, ?, ?, ?, ?, ?, ?)",
                (
                    *(job.id, job.tenant, wish.name or job.id, wish.input_sha256),
                    *(wish.base_url, wish.webhook, json.dumps(list(wish.events))),
                ),
            )
        return accepted

    def find(self, tenant: str, name: str) -> tuple[str, str]:
        """The job that a client means by his name for it or by its id, if it is his; and his name or else that id."""
        row = self._one(
            "SELECT job_id, name FROM predictions WHERE tenant = ? AND (name = ? OR job_id = ?)", tenant, name, name
        )
        return (name, name) if row is None else (row["job_id"], row["name"])

    def watched(self, job_id: str | None = None) -> list[Watched]:
        """Jobs that have not ended and have a webhook: all of them, or that one."""
        which, values = ("", ()) if job_id is None else (" AND job_id = ?", (job_id,))
        rows = self._db.execute(
            "SELECT job_id, name, base_url, webhook, events FROM predictions JOIN jobs ON jobs.id = job_id "
            f"WHERE webhook IS NOT NULL AND state IN ('queued', 'running'){which}",
            values,
        ).fetchall()
        return [Watched(**{**row, "events": tuple(json.loads(row["events"]))}) for row in map(dict, rows)]

    def due(self, now: float, limit: int) -> list[Due]:
        """Ends of jobs that it is time to tell."""
        columns = "job_id, name, base_url, webhook, tries"
        rows = self._db.execute(f"SELECT {columns} FROM outbox WHERE due_at <= ? ORDER BY due_at LIMIT ?", (now, limit))
        return [Due(**dict(row)) for row in rows.fetchall()]

    def next_due_at(self, after: float) -> float | None:
        """When the first one after that moment is."""
        row = self._one("SELECT min(due_at) AS at FROM outbox WHERE due_at > ?", after)
        return None if row is None else row["at"]

    def postpone(self, job_id: str, due_at: float) -> None:
        """It did not work."""
        self._db.execute("UPDATE outbox SET tries = tries + 1, due_at = ? WHERE job_id = ?", (due_at, job_id))

    def settle(self, job_id: str) -> None:
        """Nobody is told about it any more."""
        self._db.execute("DELETE FROM outbox WHERE job_id = ?", (job_id,))

    def _known(self, tenant: str, name: str, input_sha256: str) -> Job | None:
        row = self._one("SELECT job_id, input_sha256 FROM predictions WHERE tenant = ? AND name = ?", tenant, name)
        job = None if row is None else self._store.find(row["job_id"])
        if row is None or job is None or job.deleted_at is not None:
            # What was deleted leaves its name to others.
            self._db.execute("DELETE FROM predictions WHERE tenant = ? AND name = ?", (tenant, name))
            return None
        if row["input_sha256"] != input_sha256:
            raise NameReused
        return job

    def _one(self, query: str, *values: object) -> sqlite3.Row | None:
        return self._db.execute(query, values).fetchone()


def shown(job: Job, progress: Progress, *, name: str, base_url: str, output: str | None = None) -> dict[str, Any]:
    """The prediction object of Cog, with links; `output` in place of the link to the video."""
    done = job.state == "completed"
    content = f"{base_url}/v1/videos/{job.id}/content"
    taken_s = None if job.started_at is None or job.ended_at is None else job.ended_at - job.started_at
    return {
        "id": name,
        "model": job.model,
        "version": job.model,
        "status": STATUS[job.state],
        "input": dict(job.request),
        "output": (output or content) if done else None,
        "logs": log_line(progress) if job.state == "running" else "",
        "error": None if job.error_code is None else f"{job.error_code}: {job.error_message}",
        "metrics": {} if taken_s is None else {"predict_time": round(taken_s, 3)},
        "created_at": _time(job.created_at),
        "started_at": _time(job.started_at),
        "completed_at": _time(job.ended_at),
        "urls": {"get": f"{base_url}/predictions/{name}", "cancel": f"{base_url}/predictions/{name}/cancel"},
    }


def log_line(progress: Progress) -> str:
    """How far a job is, in the form in which Replicate's client finds it."""
    full = progress.percent * _BAR // 100
    bar = "#" * full + "-" * (_BAR - full)
    return f"{progress.percent:3d}%|{bar}| {progress.step}/{progress.total} [{progress.stage}]\n"


def _time(seconds: float | None) -> str | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat()
