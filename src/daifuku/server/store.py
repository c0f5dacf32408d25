"""Jobs in SQLite: every change of a job is one function here, and each is whole or did not happen."""

import json
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from daifuku.server.jobs import Job, NewJob, job_of, new_id

KEY_LIVES_S = 24 * 3600.0
"""How long an Idempotency-Key is remembered."""


class Full(Exception):
    """The queue has no room, or its owner has as many jobs open as he may. Nothing was stored."""


class KeyReused(Exception):
    """The Idempotency-Key came with another body before."""


class Unknown(Exception):
    """There is no such job, or it is somebody else's."""


@dataclass(frozen=True, kw_only=True)
class Room:
    """How many jobs may wait."""

    queue: int
    """In all."""
    tenant: int | None = None
    """Queued or running, of one tenant."""


@dataclass(frozen=True, kw_only=True)
class Key:
    """An Idempotency-Key and the fingerprint of the body that it came with."""

    key: str
    body_sha256: str


@dataclass(frozen=True, kw_only=True)
class Accepted:
    """Jobs that are on disk; `replayed` if an earlier request with the same key put them there."""

    jobs: Sequence[Job]
    replayed: bool = False


class Store:
    """Reads and changes jobs on one connection. Commits nothing: who calls decides what belongs together."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._db = connection

    @property
    def connection(self) -> sqlite3.Connection:
        """For who keeps more about jobs in tables of his own, within the same change."""
        return self._db

    # What clients do.

    def accept(self, jobs: Sequence[NewJob], room: Room, key: Key | None, now: float) -> Accepted:
        """All of the jobs, or none. Raises Full and KeyReused."""
        tenant = jobs[0].tenant
        if key is not None and (known := self._answered(tenant, key, now)) is not None:
            return Accepted(jobs=known, replayed=True)
        if self.num_queued() + len(jobs) > room.queue:
            raise Full
        if room.tenant is not None and self._num_open(tenant) + len(jobs) > room.tenant:
            raise Full
        made = [self._insert(job, now) for job in jobs]
        if key is not None:
            ids = json.dumps([job.id for job in made])
            self._db.execute("INSERT INTO answers VALUES (?, ?, ?, ?, ?)", (tenant, key.key, key.body_sha256, ids, now))
        return Accepted(jobs=made)

    def get(self, tenant: str, job_id: str) -> Job:
        """Raises Unknown."""
        job = self.find(job_id)
        if job is None or job.tenant != tenant or job.deleted_at is not None:
            raise Unknown
        return job

    def page(self, tenant: str, *, after: str | None, limit: int, newest_first: bool) -> list[Job]:
        """Up to `limit` jobs that come after the job `after`. Raises Unknown where there is no such job."""
        direction, sign = ("DESC", "<") if newest_first else ("ASC", ">")
        where, values = "tenant = ? AND deleted_at IS NULL", [tenant]
        if after is not None:
            found = self.find(after)
            if found is None or found.tenant != tenant:
                raise Unknown
            where, values = f"{where} AND number {sign} ?", [tenant, found.number]
        return self._all(f"SELECT * FROM jobs WHERE {where} ORDER BY number {direction} LIMIT ?", *values, limit)

    def cancel(self, tenant: str, job_id: str, now: float) -> tuple[Job, bool]:
        """The job, cancelled unless it has ended, and whether a worker was busy with it. Raises Unknown."""
        job = self.get(tenant, job_id)
        if job.has_ended:
            return job, False
        self._db.execute("UPDATE jobs SET state = 'cancelled', ended_at = ? WHERE id = ?", (now, job_id))
        return self.get(tenant, job_id), job.state == "running"

    def delete(self, tenant: str, job_id: str, now: float) -> tuple[Job, bool]:
        """Cancels the job if need be, and shows it to nobody any more. Returns what `cancel` does. Raises Unknown."""
        job, busy = self.cancel(tenant, job_id, now)
        self._db.execute("UPDATE jobs SET deleted_at = ? WHERE id = ?", (now, job_id))
        return job, busy

    # What workers do. Each takes the fencing number of the claim, and says whether that still holds.

    def claim(self, now: float, lease_s: float) -> Job | None:
        """The job that waits longest, now running."""
        rows = self._all(
            "UPDATE jobs SET state = 'running', fence = fence + 1, lease_until = ?, started_at = "
            "coalesce(started_at, ?) WHERE number = (SELECT min(number) FROM jobs WHERE state = 'queued') RETURNING *",
            now + lease_s,
            now,
        )
        return rows[0] if rows else None

    def renew(self, job_id: str, fence: int, lease_until: float) -> bool:
        """The worker still lives."""
        return self._fenced("lease_until = ?", (lease_until,), job_id, fence)

    def complete(self, job_id: str, fence: int, result: dict[str, Any], num_bytes: int, now: float) -> bool:
        """The files of the job lie under their names."""
        values = (json.dumps(result), num_bytes, now)
        return self._fenced("state = 'completed', result = ?, num_bytes = ?, ended_at = ?", values, job_id, fence)

    def fail(self, job_id: str, fence: int, code: str, message: str, now: float) -> bool:
        """The job can never be completed."""
        change = "state = 'failed', error_code = ?, error_message = ?, ended_at = ?"
        return self._fenced(change, (code, message, now), job_id, fence)

    def put_back(self, job_id: str, fence: int) -> bool:
        """Its worker stops on purpose; another one goes on from the checkpoint."""
        return self._fenced("state = 'queued', lease_until = NULL", (), job_id, fence)

    def bury(self, job_id: str, fence: int, *, max_deaths: int, now: float, further: bool = False) -> bool:
        """Its worker died: the job goes back to its place in the queue, or fails if that was once too often.

        Where the job had come `further`, for good, the deaths before count no more: it is not what kills workers.
        """
        if not self._fenced("deaths = ? * deaths + 1", (not further,), job_id, fence):
            return False
        job = self.find(job_id)
        assert job is not None, "a row that was just changed is there"
        if job.deaths < max_deaths:
            return self.put_back(job_id, fence)
        message = f"The worker died {job.deaths} times while it made this video."
        return self.fail(job_id, fence, "worker_crashed", message, now)

    # What the server does.

    def recover(self, *, max_restarts: int, now: float) -> list[Job]:
        """After a start nobody runs anything: whatever is marked running waits again. Returns those jobs.

        A job under which the server ended too often fails: it may be what ends it.
        """
        found = self._all("SELECT * FROM jobs WHERE state = 'running'")
        for job in found:
            self._db.execute("UPDATE jobs SET restarts = restarts + 1 WHERE id = ?", (job.id,))
            if job.restarts + 1 < max_restarts:
                self.put_back(job.id, job.fence)
            else:
                message = f"The server ended {max_restarts} times while it made this video."
                self.fail(job.id, job.fence, "server_crashed", message, now)
        return found

    def find(self, job_id: str) -> Job | None:
        """Any job, whoever's it is."""
        rows = self._all("SELECT * FROM jobs WHERE id = ?", job_id)
        return rows[0] if rows else None

    def unfinished(self) -> list[Job]:
        """Jobs that wait or run."""
        return self._all("SELECT * FROM jobs WHERE state IN ('queued', 'running')")

    def num_queued(self) -> int:
        """Jobs that wait."""
        return self._number("SELECT count(*) FROM jobs WHERE state = 'queued'")

    def position(self, job: Job) -> int:
        """Jobs that are made before this one, from 0."""
        return self._number("SELECT count(*) FROM jobs WHERE state = 'queued' AND number < ?", job.number)

    def kept(self) -> list[Job]:
        """Jobs that have files, those first that should go first: deleted ones, then the oldest."""
        return self._all(
            "SELECT * FROM jobs WHERE num_bytes > 0 AND files_gone_at IS NULL ORDER BY deleted_at IS NULL, ended_at"
        )

    def files_gone(self, job_id: str, now: float) -> None:
        """Nothing of the job lies on disk any more."""
        self._db.execute("UPDATE jobs SET files_gone_at = ? WHERE id = ?", (now, job_id))

    def forget(self, before: float, now: float) -> int:
        """Rows of jobs that ended long ago and have no files, and keys that have served. Returns how many jobs went."""
        self._db.execute("DELETE FROM answers WHERE created_at < ?", (now - KEY_LIVES_S,))
        gone = "ended_at < ? AND (files_gone_at IS NOT NULL OR num_bytes = 0)"
        return self._db.execute(f"DELETE FROM jobs WHERE {gone}", (min(before, now - KEY_LIVES_S),)).rowcount

    def _insert(self, job: NewJob, now: float) -> Job:
        columns = "id, tenant, kind, parent, model, request, created_at"
        values = (new_id(), job.tenant, job.kind, job.parent, job.model, json.dumps(dict(job.request)), now)
        return self._all(f"INSERT INTO jobs ({columns}) VALUES (?, ?, ?, ?, ?, ?, ?) RETURNING *", *values)[0]

    def _answered(self, tenant: str, key: Key, now: float) -> list[Job] | None:
        query = "SELECT * FROM answers WHERE tenant = ? AND key = ?"
        row = self._db.execute(query, (tenant, key.key)).fetchone()
        if row is None:
            return None
        found = [job for job_id in json.loads(row["job_ids"]) if (job := self.find(job_id)) is not None]
        # A clock that was set back may have had the jobs forgotten before their key.
        if row["created_at"] < now - KEY_LIVES_S or not found:
            self._db.execute("DELETE FROM answers WHERE tenant = ? AND key = ?", (tenant, key.key))
            return None
        if row["body_sha256"] != key.body_sha256:
            raise KeyReused
        return found

    def _num_open(self, tenant: str) -> int:
        return self._number("SELECT count(*) FROM jobs WHERE tenant = ? AND state IN ('queued', 'running')", tenant)

    def _fenced(self, change: str, values: tuple[Any, ...], job_id: str, fence: int) -> bool:
        where = "id = ? AND fence = ? AND state = 'running'"
        return self._db.execute(f"UPDATE jobs SET {change} WHERE {where}", (*values, job_id, fence)).rowcount == 1

    def _all(self, query: str, *values: object) -> list[Job]:
        return [job_of(row) for row in self._db.execute(query, values).fetchall()]

    def _number(self, query: str, *values: object) -> int:
        return self._db.execute(query, values).fetchone()[0]
