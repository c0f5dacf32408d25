"""The data folder: where files are made, how they become public, and when they go."""

import asyncio
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

from daifuku.server.database import Database
from daifuku.server.jobs import Job
from daifuku.server.tasks import FILES

READING_LASTS_S = 60.0
"""Who reads a file in ranges comes back for the next one within that time."""


class DataFolder:
    """jobs.sqlite, videos/ (one folder for each completed job), checkpoints/ and temporary/.

    Every name in it is made of a job's id: nothing that a user writes becomes a path.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._reading: Counter[str] = Counter()
        self._last_read: dict[str, float] = {}
        for name in ("videos", "checkpoints", "temporary"):
            (root / name).mkdir(parents=True, exist_ok=True, mode=0o700)

    @property
    def database(self) -> Path:
        """Where the jobs are."""
        return self.root / "jobs.sqlite"

    def draft(self, job: Job) -> Path:
        """Where one claim of a job makes its files: no two claims share it."""
        return self.root / "temporary" / f"{job.id}.{job.fence}"

    def checkpoint(self, job: Job) -> Path:
        """What lets the next claim go on."""
        return self.root / "checkpoints" / f"{job.id}.resume.safetensors"

    def has_come_further(self, job: Job, since: float) -> bool:
        """Whether a checkpoint of the job was written after a moment, in seconds since 1970."""
        try:
            return self.checkpoint(job).stat().st_mtime > since
        except FileNotFoundError:
            return False

    def published(self, job_id: str, variant: str) -> Path:
        """A file of a completed job."""
        return self.root / "videos" / job_id / FILES[variant][0]

    def publish(self, job: Job) -> None:
        """Gives a finished draft its name, whole, and for good before this returns.

        What lies there already comes from a claim that was never recorded, so nobody has seen it.
        """
        draft, public = self.draft(job), self.root / "videos" / job.id
        sync(draft)
        if public.exists():
            shutil.rmtree(public)
        draft.rename(public)
        sync(public.parent)

    def withdraw(self, job_id: str) -> None:
        """The files of a job go. What is gone already is no error."""
        shutil.rmtree(self.root / "videos" / job_id, ignore_errors=True)
        sync(self.root / "videos")

    def clear(self, job: Job) -> None:
        """What the making of a job left behind goes, also what workers that were killed could not tidy up."""
        for draft in (self.root / "temporary").glob(f"{job.id}.*"):
            shutil.rmtree(draft, ignore_errors=True)
        for path in (self.root / "checkpoints").glob(f"*{job.id}.*"):
            path.unlink(missing_ok=True)

    def tidy(self, running: set[str], completed: set[str]) -> None:
        """At a start: drafts of nobody, checkpoints of jobs that have ended, and files that were never recorded."""
        shutil.rmtree(self.root / "temporary")
        (self.root / "temporary").mkdir(mode=0o700)
        for path in (self.root / "checkpoints").iterdir():
            if path.name.removesuffix(".resume.safetensors") not in running:
                path.unlink()
        for path in (self.root / "videos").iterdir():
            if path.name not in completed:
                shutil.rmtree(path)

    @contextmanager
    def reading(self, job_id: str) -> Iterator[None]:
        """While somebody reads files of a job, they stay."""
        self._reading[job_id] += 1
        try:
            yield
        finally:
            self._reading[job_id] -= 1
            self._last_read[job_id] = monotonic()

    def is_read(self, job_id: str) -> bool:
        """Whether somebody reads, or has just read a part of what he may want the rest of."""
        now = monotonic()
        self._last_read = {name: at for name, at in self._last_read.items() if now - at < READING_LASTS_S}
        self._reading += Counter()
        return job_id in self._reading or job_id in self._last_read


@dataclass(frozen=True, kw_only=True)
class Retention:
    """What is kept."""

    age_s: float
    num_bytes: int

    def expires_at(self, job: Job) -> float | None:
        """When the files of a job go, at the latest."""
        return None if job.ended_at is None or not job.num_bytes else job.ended_at + self.age_s


async def sweep(folder: DataFolder, database: Database, retention: Retention, now: float) -> Mapping[str, int]:
    """Files go that were deleted, are too old, or are too many, the oldest first, but none that is being read.

    Returns how many jobs lost their files, and how many bytes are left.
    """
    kept = await database.read(lambda store: store.kept())
    num_bytes, gone = sum(job.num_bytes for job in kept), 0
    for job in kept:
        expires_at = retention.expires_at(job)
        due = job.deleted_at is not None or num_bytes > retention.num_bytes or (expires_at or now) <= now
        if due and not folder.is_read(job.id):
            # First the record: a file that is still there is tidied up at the next start, a record never.
            await database.change(lambda store, job_id=job.id: store.files_gone(job_id, now))
            await asyncio.to_thread(folder.withdraw, job.id)
            num_bytes, gone = num_bytes - job.num_bytes, gone + 1
    await database.change(lambda store: store.forget(now - retention.age_s, now))
    return {"jobs": gone, "bytes_left": num_bytes}


def sync(path: Path) -> None:
    """Makes the names in a folder survive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
