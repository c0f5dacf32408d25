"""How far every running job is: the newest state only, so a slow reader misses steps and fills no memory."""

import asyncio
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

SAMPLING_SHARE = 0.9
"""Of a job's progress; decoding is the rest."""


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where a running job is."""

    stage: str = "starting"
    """starting, text, sampling or decoding."""
    step: int = 0
    total: int = 0
    """Steps of this stage; frames while decoding."""
    preview: str | None = None
    """A PNG picture in base64."""
    preview_step: int = 0

    @property
    def percent(self) -> int:
        """Of the whole job: 100 is said only of one that is completed."""
        share = self.step / self.total if self.total else 0.0
        if self.stage == "decoding":
            return min(99, int(100 * (SAMPLING_SHARE + (1 - SAMPLING_SHARE) * share)))
        return int(100 * SAMPLING_SHARE * share) if self.stage == "sampling" else 0


class Feed:
    """Progress of running jobs, and a bell for whoever follows one."""

    def __init__(self) -> None:
        self._progress: dict[str, Progress] = {}
        self._bells: defaultdict[str, set[asyncio.Event]] = defaultdict(set)

    def progress(self, job_id: str) -> Progress:
        """Where the job is."""
        return self._progress.get(job_id, Progress())

    def is_running(self, job_id: str) -> bool:
        """Whether anything has been reported of the job, and it goes on."""
        return job_id in self._progress

    def report(self, job_id: str, progress: Progress) -> None:
        """The job has come further."""
        self._progress[job_id] = progress
        self.ring(job_id)

    def preview(self, job_id: str, step: int, png: str) -> None:
        """There is a picture of what the job is going to look like."""
        self.report(job_id, replace(self.progress(job_id), preview=png, preview_step=step))

    def ended(self, job_id: str) -> None:
        """Nobody works on the job any more."""
        self._progress.pop(job_id, None)
        self.ring(job_id)

    def ring(self, job_id: str) -> None:
        """The job looks different than before."""
        for bell in self._bells.get(job_id, ()):
            bell.set()

    def ring_all(self) -> None:
        """The queue has moved."""
        for job_id in self._bells:
            self.ring(job_id)

    @contextmanager
    def following(self, job_id: str) -> Iterator[asyncio.Event]:
        """An event that is set whenever the job may look different."""
        bell = asyncio.Event()
        self._bells[job_id].add(bell)
        try:
            yield bell
        finally:
            self._bells[job_id].discard(bell)
            if not self._bells[job_id]:
                del self._bells[job_id]
