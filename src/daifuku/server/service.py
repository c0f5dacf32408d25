"""What every shape of the API does, once: accept, look, cancel, delete, and hand out files."""

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import time
from typing import Any

from fastapi import Request

from daifuku.server.asks import Served, from_form, resolved
from daifuku.server.bodies import read_body
from daifuku.server.database import Database
from daifuku.server.dispatcher import Dispatcher
from daifuku.server.feed import Feed
from daifuku.server.folder import DataFolder, Retention
from daifuku.server.jobs import Job, NewJob
from daifuku.server.keys import ApiKey
from daifuku.server.metrics import Metrics
from daifuku.server.moderation import Moderator, approve
from daifuku.server.problems import Problem, busy, not_found
from daifuku.server.settings import Settings
from daifuku.server.store import Accepted, Full, Key, KeyReused, Room, Store, Unknown
from daifuku.server.views import video
from daifuku.server.webhooks import Deliverer

JOB_ID = re.compile(r"video_[0-9a-f]{32}")
_KEY = re.compile(r"[\x21-\x7e]{1,255}")

Accept = Callable[[Store, Sequence[NewJob], Room, Key | None, float], Accepted]
"""Like `Store.accept`."""


@dataclass(kw_only=True)
class Service:
    """The parts of a running server that answer requests."""

    settings: Settings
    database: Database
    folder: DataFolder
    feed: Feed
    dispatcher: Dispatcher
    metrics: Metrics
    retention: Retention
    name: str
    """Of the model, as clients call it."""
    loras: Mapping[str, Path]
    deliverer: Deliverer
    moderator: Moderator | None = None
    """Asked before anything of a job is stored; without one everything is allowed."""
    draining: bool = False
    started_at: float = field(default_factory=time)

    async def body(self, request: Request) -> dict[str, Any]:
        """The fields of a request's body. Raises Problem."""
        limits = {"max_bytes": self.settings.max_body_bytes, "timeout_s": self.settings.body_s}
        found = await read_body(request, **limits)
        is_form = request.headers.get("content-type", "").lower().startswith("multipart/")
        return from_form(found) if is_form else found

    @property
    def served(self) -> Served | None:
        """The model; None until a worker has told about it."""
        card = self.dispatcher.card
        if card is None:
            return None
        return Served(name=self.name, defaults=card.defaults, loras=self.loras, max_work=self.settings.max_work)

    def model(self) -> Served:
        """The model. Raises Problem while there is none, and when the server is about to end."""
        if self.draining or (served := self.served) is None:
            why = "The server is about to end." if self.draining else "The model is being loaded."
            raise Problem(503, "not_ready", why, headers={"Retry-After": "5"})
        return served

    async def accept(
        self, request: Request, key: ApiKey, jobs: Sequence[NewJob], body: object, *, how: Accept = Store.accept
    ) -> Accepted:
        """Jobs on disk. A shape that keeps more about them says `how`, around `Store.accept`.

        Raises Problem where there is no room, a prompt is not allowed, or the Idempotency-Key has come with another
        body.
        """
        reuse = _idempotency(request, body)
        room = Room(queue=self.settings.max_queue, tenant=key.max_jobs)
        if self.moderator is not None:
            await self._moderate(self.moderator, jobs)
        try:
            accepted = await self.database.change(lambda store: how(store, jobs, room, reuse, time()))
        except Full as error:
            self.metrics.refused.labels("queue_full").inc()
            raise busy("Too many jobs wait already; nothing was stored.", self.dispatcher.job_s) from error
        except KeyReused as error:
            message = "This Idempotency-Key came with another body before."
            raise Problem(409, "idempotency_key_reused", message, param="Idempotency-Key") from error
        if not accepted.replayed:
            self.metrics.accepted.inc(len(jobs))
            self.dispatcher.wake()
        return accepted

    async def _moderate(self, moderator: Moderator, jobs: Sequence[NewJob]) -> None:
        try:
            await approve(moderator, jobs)
        except Problem as problem:
            self.metrics.refused.labels(problem.code).inc()
            raise

    def new_job(self, key: ApiKey, body: Mapping[str, Any], parent: Job | None = None) -> NewJob:
        """What a body asks for; with a parent, its request with what the body changes. Raises Problem."""
        served = self.model()
        found = resolved(served, body, None if parent is None else parent.request)
        return NewJob(
            tenant=key.name,
            model=served.name,
            request=found.to_dict(),
            parent=None if parent is None else parent.id,
        )

    def new_decoding(self, key: ApiKey, body: Mapping[str, Any], parent: Job) -> NewJob:
        """The frames of a finished job once more, perhaps at another rate. Raises Problem."""
        served = self.model()
        if parent.model != served.name:
            raise Problem(409, "other_model", "The latents of this video belong to a model that is not served now.")
        if not set(body) <= {"fps"}:
            raise Problem(400, "unknown_field", "Only fps can change when a video is decoded again.", param="fps")
        found = resolved(served, body, parent.request)
        return NewJob(tenant=key.name, model=served.name, request=found.to_dict(), kind="decode", parent=parent.id)

    async def look(self, key: ApiKey, job_id: str) -> Job:
        """A job of that key. Raises Problem."""
        return await self._known(job_id, self.database.read, lambda store: store.get(key.name, job_id))

    async def finished(self, key: ApiKey, job_id: str) -> Job:
        """A job whose files are there. Raises Problem."""
        job = await self.look(key, job_id)
        if job.state != "completed":
            raise Problem(409, "not_completed", "The video is not there: its job is not completed.")
        if job.files_gone_at is not None:
            raise Problem(410, "expired", "The files of this video are not kept any more.")
        return job

    async def cancel(self, key: ApiKey, job_id: str) -> Job:
        """Cancelled, unless it has ended. Raises Problem."""
        change = self.database.change
        job, busy_with_it = await self._known(job_id, change, lambda store: store.cancel(key.name, job_id, time()))
        await self._after_cancel(job, busy_with_it)
        return job

    async def delete(self, key: ApiKey, job_id: str) -> None:
        """Cancelled if need be, and gone for everybody. Raises Problem."""
        change = self.database.change
        job, busy_with_it = await self._known(job_id, change, lambda store: store.delete(key.name, job_id, time()))
        await self._after_cancel(job, busy_with_it)

    async def shown(self, jobs: Sequence[Job]) -> list[dict[str, Any]]:
        """Jobs as clients see them."""
        waiting = [job for job in jobs if job.state == "queued"]
        positions: dict[str, int] = {}
        if waiting:
            positions = await self.database.read(lambda store: {job.id: store.position(job) for job in waiting})
        return [video(job, self.feed.progress(job.id), positions.get(job.id), self.retention) for job in jobs]

    async def _after_cancel(self, job: Job, busy_with_it: bool) -> None:
        if busy_with_it:
            await self.dispatcher.cancel(job.id)
        self.dispatcher.wake()
        self.feed.ring(job.id)

    async def _known(self, job_id: str, ask: Callable[..., Any], what: Callable[[Store], Any]) -> Any:
        if not JOB_ID.fullmatch(job_id):
            raise not_found()
        try:
            return await ask(what)
        except Unknown as error:
            raise not_found() from error


def _idempotency(request: Request, body: object) -> Key | None:
    value = request.headers.get("idempotency-key")
    if value is None:
        return None
    if not _KEY.fullmatch(value):
        message = "An Idempotency-Key has 1 to 255 visible ASCII characters."
        raise Problem(400, "invalid_value", message, param="Idempotency-Key")
    content = json.dumps([request.url.path, body], sort_keys=True).encode()
    return Key(key=value, body_sha256=hashlib.sha256(content).hexdigest())
