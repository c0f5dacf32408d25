"""Brings jobs and workers together: claims, listens, publishes, buries, and goes on."""

import asyncio
import sqlite3
from collections.abc import Coroutine, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from time import monotonic, time
from typing import Any

from daifuku.server.database import Database
from daifuku.server.feed import Feed
from daifuku.server.folder import DataFolder
from daifuku.server.jobs import Job
from daifuku.server.logs import Log
from daifuku.server.metrics import Metrics
from daifuku.server.pool import Pool, Unusable, Worker, WorkerDied
from daifuku.server.tasks import ALIVE, DONE, FAILED, LATENTS, PREVIEW, STAGE, STEP, STOPPED, ModelCard, Task

MAX_DEATHS = 3
"""Workers that a job may take with it without coming further."""

MAX_RESTARTS = 10
"""Ends of the server under a running job: rarely its fault, but no job may keep a server from ever working."""

GUESSED_JOB_S = 10.0
"""What a job is thought to take while none has been made."""

RETRY_S = (0.1, 0.5, 2.0, 5.0)
"""Pauses before what could not be recorded, as on a full disk, is tried again; the last one is repeated."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How long things may take."""

    lease_s: float
    """Without a sign of life."""
    deadline_s: float
    """For one claim of a job."""
    cancel_s: float
    """Until a worker that does not cancel is killed."""


class _Missing(Exception):
    """A file that a job needs has gone while the job waited."""


@dataclass(frozen=True, kw_only=True)
class _Running:
    job: Job
    worker: Worker


class Dispatcher:
    """One loop for each worker.

    `card` is what a worker has told about its model, and stays when that worker dies; `ready_at` is when the first one
    did; `job_s` is about what a job takes; `failed` is set to what makes it useless to go on.
    """

    def __init__(
        self,
        *,
        pool: Pool,
        database: Database,
        folder: DataFolder,
        feed: Feed,
        loras: Mapping[str, Path],
        limits: Limits,
        metrics: Metrics,
        log: Log,
    ) -> None:
        self.card: ModelCard | None = None
        self.ready_at: float | None = None
        self.job_s = GUESSED_JOB_S
        self.failed: asyncio.Future[Unusable]
        self._pool = pool
        self._database = database
        self._folder = folder
        self._feed = feed
        self._loras = loras
        self._limits = limits
        self._metrics = metrics
        self._log = log
        self._running: dict[str, _Running] = {}
        self._work = asyncio.Event()
        self._draining = False
        self._loops: Sequence[asyncio.Task[None]] = ()
        self._late: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Puts back what a server before this one was busy with, and begins."""
        self.failed = asyncio.get_running_loop().create_future()
        lost = await self._database.change(lambda store: store.recover(max_restarts=MAX_RESTARTS, now=time()))
        for job in lost:
            self._log.warning("job was running when the server ended", {"job": job.id, "restarts": job.restarts + 1})
        self._loops = [asyncio.create_task(self._serve(worker)) for worker in self._pool.workers]

    async def drain(self, grace_s: float) -> None:
        """Takes nothing new. Whatever runs leaves a checkpoint and waits for the next server."""
        self._draining = True
        self._work.set()
        await asyncio.gather(*(running.worker.stop() for running in self._running.values()))
        deadline = monotonic() + grace_s
        while self._running and monotonic() < deadline:
            await asyncio.sleep(0.02)
        left = [running.job for running in self._running.values()]
        for task in (*self._loops, *self._late):
            task.cancel()
        await asyncio.gather(*self._loops, *self._late, return_exceptions=True)
        await self._pool.close()
        await self._database.change(lambda store: [store.put_back(job.id, job.fence) for job in left])

    def num_ready(self) -> int:
        """Workers that have their model."""
        return sum(worker.card is not None for worker in self._pool.workers)

    def num_running(self) -> int:
        """Workers that are busy with a job."""
        return len(self._running)

    def wake(self) -> None:
        """There may be something to do."""
        self._work.set()
        self._feed.ring_all()

    async def cancel(self, job_id: str) -> None:
        """The database says that the job is cancelled: its worker hears it too, and has to listen."""
        self._feed.ended(job_id)
        if (running := self._running.get(job_id)) is not None:
            await running.worker.cancel()
            late = asyncio.create_task(self._kill_late(running))
            self._late.add(late)
            late.add_done_callback(self._late.discard)

    async def _kill_late(self, running: _Running) -> None:
        await asyncio.sleep(self._limits.cancel_s)
        if self._running.get(running.job.id) is running:
            await running.worker.kill()

    async def _serve(self, worker: Worker) -> None:
        while not self._draining:
            try:
                self.card = await worker.ready()
                self.ready_at = self.ready_at or time()
            except Unusable as error:
                if not self.failed.done():
                    self.failed.set_result(error)
                return
            except OSError as error:
                self._log.warning("no worker could be started", {"worker": worker.name, "error": str(error)})
                await asyncio.sleep(RETRY_S[-1])
                continue
            self._work.clear()
            job = await self._claim()
            if job is None:
                await _first(self._work.wait(), worker.gone())
                continue
            if self._draining:
                await self._recorded(lambda store, job=job: store.put_back(job.id, job.fence))
                return
            # There may be more than one to claim.
            self._work.set()
            self._running[job.id] = _Running(job=job, worker=worker)
            self._feed.ring_all()
            try:
                await self._make(job, worker)
            except Exception as error:  # noqa: BLE001 (no job may end the loop that makes the others)
                self._log.warning("a job went wrong in the server", {"job": job.id, "error": type(error).__name__})
                await self._fail(job, "internal", "Something went wrong while the video was made.")
            finally:
                del self._running[job.id]
                self._feed.ended(job.id)
                # Where it waits again, another worker may take it.
                self._work.set()

    async def _claim(self) -> Job | None:
        try:
            return await self._database.change(lambda store: store.claim(time(), self._limits.lease_s))
        except sqlite3.Error as error:
            self._log.warning("no job could be claimed", {"error": str(error)})
            await asyncio.sleep(RETRY_S[-1])
            self._work.set()
            return None

    async def _make(self, job: Job, worker: Worker) -> None:
        self._log.info("job started", {"job": job.id, "fence": job.fence, "worker": worker.name})
        started, claimed_at = monotonic(), time()
        try:
            task = self._task(job)
            async with asyncio.timeout(self._limits.deadline_s):
                end = await self._follow(job, worker, task)
            await self._conclude(job, end)
        except _Missing as error:
            await self._fail(job, "missing", str(error))
        except TimeoutError:
            await worker.kill()
            await self._fail(job, "deadline", f"The video took longer than {self._limits.deadline_s:g} seconds.")
        except WorkerDied:
            self._metrics.worker_deaths.inc()
            self._log.warning("worker died", {"job": job.id, "fence": job.fence, "worker": worker.name})
            further = self._folder.has_come_further(job, claimed_at)
            await self._recorded(
                lambda store: store.bury(job.id, job.fence, max_deaths=MAX_DEATHS, now=time(), further=further)
            )
        after = await self._recorded(lambda store: store.find(job.id))
        state = "gone" if after is None else after.state
        if after is None or after.has_ended:
            seconds = monotonic() - started
            if state == "completed":
                self.job_s += (seconds - self.job_s) / 5
            self._metrics.ended.labels(state).inc()
            self._metrics.job_seconds.observe(seconds)
            await asyncio.to_thread(self._folder.clear, job)
        self._log.info("job left its worker", {"job": job.id, "state": state})

    async def _follow(self, job: Job, worker: Worker, task: Task) -> Mapping[str, Any]:
        """Returns the last report. Raises WorkerDied."""
        renewed = monotonic()
        async for report in worker.run(task):
            match report["event"]:
                case event if event == ALIVE:
                    if monotonic() - renewed > self._limits.lease_s / 3:
                        renewed, until = monotonic(), time() + self._limits.lease_s
                        await self._recorded(lambda store, until=until: store.renew(job.id, job.fence, until))
                case event if event in (STAGE, STEP):
                    self._report(job, report)
                case event if event == PREVIEW:
                    self._feed.preview(job.id, report["step"], report["png"])
                case _:
                    return report
        raise WorkerDied

    async def _conclude(self, job: Job, end: Mapping[str, Any]) -> None:
        if end["event"] == DONE:
            try:
                await self._publish(job, end["result"])
            except OSError as error:
                self._log.warning("a video could not be published", {"job": job.id, "error": str(error)})
                with suppress(OSError):
                    await asyncio.to_thread(self._folder.withdraw, job.id)
                await self._fail(job, "unwritable", "The video could not be written to disk.")
        elif end["event"] == FAILED:
            self._log.warning("job failed", {"job": job.id, "code": end["code"], "error": end["log"]})
            await self._fail(job, end["code"], end["message"])
        elif end["event"] == STOPPED:
            await self._recorded(lambda store: store.put_back(job.id, job.fence))

    def _report(self, job: Job, report: Mapping[str, Any]) -> None:
        step, total = report.get("step", 0), report.get("total", 0)
        self._feed.report(job.id, replace(self._feed.progress(job.id), stage=report["stage"], step=step, total=total))

    async def _publish(self, job: Job, result: dict[str, Any]) -> None:
        """The files get their names first: whoever is told that they are there finds them."""
        current = await self._recorded(lambda store: store.find(job.id))
        if current is None or current.state != "running" or current.fence != job.fence:
            return
        await asyncio.to_thread(self._folder.publish, job)
        num_bytes = sum(file["bytes"] for file in result["files"].values())
        if not await self._recorded(lambda store: store.complete(job.id, job.fence, result, num_bytes, time())):
            await asyncio.to_thread(self._folder.withdraw, job.id)

    async def _fail(self, job: Job, code: str, message: str) -> None:
        await self._recorded(lambda store: store.fail(job.id, job.fence, code, message, time()))

    async def _recorded(self, change: Any) -> Any:
        """What happened is told, and what has to be known asked, until the disk takes it."""
        attempt = 0
        while True:
            try:
                return await self._database.change(change)
            except sqlite3.Error as error:
                self._log.warning("a change of a job could not be recorded", {"error": str(error)})
                await asyncio.sleep(RETRY_S[min(attempt, len(RETRY_S) - 1)])
                attempt += 1

    def _task(self, job: Job) -> Task:
        """Raises _Missing for a file that the job needs."""
        loras = job.request.get("loras", [])
        if any(name not in self._loras for name, _ in loras):
            raise _Missing("A LoRA of this request is not there any more.")
        request = {**job.request, "loras": [[str(self._loras[name]), strength] for name, strength in loras]}
        latents = None
        if job.kind == "decode":
            assert job.parent is not None, "the schema of a decoding names what it decodes"
            latents = str(self._folder.published(job.parent, LATENTS))
            if not Path(latents).exists():
                raise _Missing("The latents of this video are not kept any more.")
        return Task(
            kind=job.kind,
            request=request,
            lora_names=tuple(name for name, _ in loras),
            folder=str(self._folder.draft(job)),
            checkpoint=str(self._folder.checkpoint(job)),
            latents=latents,
        )


async def _first(*waits: Coroutine[Any, Any, Any]) -> None:
    """Until one of them is over."""
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
