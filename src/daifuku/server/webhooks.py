"""Telling others how jobs go: their course as well as it goes, their end until somebody has heard it."""

import asyncio
import base64
import binascii
import hashlib
import hmac
import json
import secrets
import sqlite3
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, time
from typing import Any

from daifuku.errors import InvalidRequest
from daifuku.server.database import Database
from daifuku.server.feed import Feed
from daifuku.server.logs import Log
from daifuku.server.metrics import Metrics
from daifuku.server.posting import NoAnswer, post
from daifuku.server.predictions import (
    COMPLETED,
    LOGS,
    OUTPUT,
    START,
    Due,
    Predictions,
    Watched,
    log_line,
    shown,
)
from daifuku.server.store import Store
from daifuku.server.targets import BadTarget, Policy, Target

LOGS_EVERY_S = 0.5
"""As in Cog: no two webhooks about the course of a job come closer together."""

MAX_TOGETHER = 32
"""Ends of jobs that are told at a time."""

LOOK_S = 60.0
"""The outbox is looked into at least that often."""

SECRET_PREFIX = "whsec_"
_MIN_SECRET_BYTES = 24


@dataclass(frozen=True, kw_only=True)
class Manner:
    """How webhooks are sent."""

    policy: Policy
    secret: bytes | None
    """Signs them; None: they are not signed."""
    tries: int
    retry_s: float
    """Until the second try; each pause is twice the one before."""
    timeout_s: float


def read_secret(setting: str | None) -> bytes | None:
    """The key of "whsec_..." or of a file that holds such a line. Raises InvalidRequest, which never shows it."""
    if setting is None:
        return None
    text = setting
    if not setting.startswith(SECRET_PREFIX):
        try:
            text = Path(setting).read_text().strip()
        except (OSError, ValueError) as error:
            raise InvalidRequest("webhook_secret is neither whsec_ and base64 nor a file that can be read.") from error
    with suppress(binascii.Error, ValueError):
        secret = base64.b64decode(text.removeprefix(SECRET_PREFIX), validate=True)
        if text.startswith(SECRET_PREFIX) and len(secret) >= _MIN_SECRET_BYTES:
            return secret
    raise InvalidRequest(
        f"webhook_secret is whsec_ and the base64 of at least {_MIN_SECRET_BYTES} bytes, or a file of that. Try "
        'echo "whsec_$(openssl rand -base64 32)".'
    )


def signature(secret: bytes, message_id: str, timestamp: str, content: bytes) -> str:
    """As standardwebhooks.com describes it: HMAC-SHA256 of "id.timestamp.content"."""
    signed = b".".join((message_id.encode(), timestamp.encode(), content))
    return "v1," + base64.b64encode(hmac.new(secret, signed, hashlib.sha256).digest()).decode()


class Deliverer:
    """Sends webhooks while the server runs; what it has not told yet waits in the outbox for the next one."""

    def __init__(self, *, manner: Manner, database: Database, feed: Feed, metrics: Metrics, log: Log) -> None:
        self._manner = manner
        self._database = database
        self._feed = feed
        self._metrics = metrics
        self._log = log
        self._bell = asyncio.Event()
        self._telling: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    def check(self, url: object) -> Target:
        """Whether webhooks may go there, as far as that can be told at once. Raises BadTarget."""
        return self._manner.policy.check(url)

    async def start(self) -> None:
        """Goes on with what an earlier server left."""
        self._spawn(self._empty_outbox())
        for watched in await self._database.read(lambda store: Predictions(store).watched()):
            self._spawn(self._accompany(watched.job_id))

    def follow(self, job_id: str) -> None:
        """A job with a webhook was accepted: that hears of it from now on."""
        self._spawn(self._accompany(job_id))

    async def close(self) -> None:
        """Ends at once: a try that is under way is made again by the next server."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _spawn(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # The course of a job: each event is tried once.

    async def _accompany(self, job_id: str) -> None:
        try:
            for watched in await self._database.read(lambda store: Predictions(store).watched(job_id)):
                await self._tell_course(watched)
        except sqlite3.Error as error:
            self._log.warning("the course of a job cannot be told", {"job": job_id, "error": str(error)})
        finally:
            self._bell.set()

    async def _tell_course(self, watched: Watched) -> None:
        started, line, told_at = False, "", 0.0
        with self._feed.following(watched.job_id) as bell:
            while True:
                bell.clear()
                running, job = self._feed.is_running(watched.job_id), None
                if not running:
                    job = await self._database.read(lambda store: store.find(watched.job_id))
                    if job is None or job.has_ended:
                        break
                if not started and (running or (job is not None and job.state == "running")):
                    started = True
                    await self._tell(watched, START)
                now_line = log_line(self._feed.progress(watched.job_id))
                # Steps in between are passed over.
                if running and now_line != line and monotonic() - told_at >= LOGS_EVERY_S:
                    line, told_at = now_line, monotonic()
                    await self._tell(watched, LOGS)
                await bell.wait()
        if job is not None and job.state == "completed":
            await self._tell(watched, OUTPUT)

    async def _tell(self, watched: Watched, event: str) -> None:
        if event in watched.events:
            message_id = f"{watched.job_id}_{event}_{secrets.token_hex(4)}"
            content = await self._content(watched)
            if content is not None:
                await self._send(event, watched, message_id, content)

    # The end of a job: it stays in the outbox until it was heard.

    async def _empty_outbox(self) -> None:
        while True:
            self._bell.clear()
            wait_s = LOOK_S
            # One whose telling ends while the outbox is read is still found there.
            told = set(self._telling)
            try:
                now = time()
                due, next_at = await self._database.read(lambda store, now=now: _next(store, now))
            except sqlite3.Error as error:
                self._log.warning("the outbox cannot be read", {"error": str(error)})
            else:
                for one in due:
                    if one.job_id not in told and len(self._telling) < MAX_TOGETHER:
                        self._telling.add(one.job_id)
                        self._spawn(self._tell_end(one))
                wait_s = LOOK_S if next_at is None else min(LOOK_S, max(0.0, next_at - time()))
            with suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._bell.wait()

    async def _tell_end(self, due: Due) -> None:
        try:
            content = await self._content(due)
            # The same at each try: whoever hears it twice can tell.
            heard = content is None or await self._send(COMPLETED, due, f"{due.job_id}_{COMPLETED}", content)
            if not heard and due.tries + 1 < self._manner.tries:
                due_at = time() + self._manner.retry_s * 2**due.tries
                await self._database.change(lambda store: Predictions(store).postpone(due.job_id, due_at))
                return
            if not heard:
                self._metrics.webhooks.labels(COMPLETED, "given_up").inc()
                self._log.warning("a webhook was given up", {"job": due.job_id, "tries": due.tries + 1})
            await self._database.change(lambda store: Predictions(store).settle(due.job_id))
        except Exception as error:  # noqa: BLE001 (a full disk, say; it stays in the outbox, and keeps no other waiting)
            self._log.warning("a webhook went wrong", {"job": due.job_id, "error": type(error).__name__})
            await asyncio.sleep(self._manner.retry_s)
        finally:
            self._telling.discard(due.job_id)
            self._bell.set()

    # Both.

    async def _content(self, about: Watched | Due) -> bytes | None:
        job = await self._database.read(lambda store: store.find(about.job_id))
        if job is None:
            return None
        progress = self._feed.progress(about.job_id)
        return json.dumps(shown(job, progress, name=about.name, base_url=about.base_url)).encode()

    async def _send(self, event: str, about: Watched | Due, message_id: str, content: bytes) -> bool:
        """Whether it was heard."""
        try:
            target = self._manner.policy.check(about.webhook)
            async with asyncio.timeout(self._manner.timeout_s):
                address = await self._manner.policy.address(target)
                answer = await post(target, address, content, headers=self._headers(message_id, content))
            outcome = "ok" if answer.is_success else f"status {answer.status}"
        except (BadTarget, NoAnswer, OSError, TimeoutError) as error:
            outcome = str(error) if isinstance(error, NoAnswer) else type(error).__name__
        self._metrics.webhooks.labels(event, "ok" if outcome == "ok" else "failed").inc()
        if outcome != "ok":
            self._log.warning("a webhook failed", {"job": about.job_id, "event": event, "why": outcome})
        return outcome == "ok"

    def _headers(self, message_id: str, content: bytes) -> Mapping[str, str]:
        timestamp = str(int(time()))
        headers = {"webhook-id": message_id, "webhook-timestamp": timestamp}
        if self._manner.secret is not None:
            headers["webhook-signature"] = signature(self._manner.secret, message_id, timestamp, content)
        return headers


def _next(store: Store, now: float) -> tuple[Sequence[Due], float | None]:
    """What is due, and when the next one will be."""
    found = Predictions(store)
    return found.due(now, 2 * MAX_TOGETHER), found.next_due_at(now)
