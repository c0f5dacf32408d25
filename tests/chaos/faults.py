"""Faults of the server that a campaign has to find: each breaks one habit that keeps the promise."""

import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from tests.chaos.moments import MOMENTS, Moment


@dataclass(frozen=True, kw_only=True)
class Fault:
    """What is broken, and by whose hand it shows."""

    side: Literal["server", "worker"]
    plant: Callable[[], None]
    """Breaks it in this process."""
    shows_as: str = ""
    """The finding; empty where there must be none."""
    by: str = ""
    """The moment that brings it to light."""
    passes: int = 0
    """How often that moment passes before somebody dies; where it does not come so often, its scene is enough."""

    @property
    def at(self) -> Moment:
        """That moment."""
        return next(moment for moment in MOMENTS if moment.name == self.by)


def _acknowledged_before_the_commit() -> None:
    from daifuku.server.database import Database, Store

    def _commit(self: Any, changes: Any) -> None:
        self._writes.execute("BEGIN IMMEDIATE")
        # Else it would see by itself that nothing is there yet.
        self._reads = self._writes
        for change in changes:
            change.done.set_result(change.make(Store(self._writes)))
        # Longer than an answer takes, also beside other work.
        time.sleep(1.0)
        self._writes.execute("COMMIT")

    Database._commit = _commit


def _recorded_before_it_is_published() -> None:
    from daifuku.server.dispatcher import Dispatcher

    async def _publish(self: Any, job: Any, result: Any) -> None:
        num_bytes = sum(file["bytes"] for file in result["files"].values())
        await self._recorded(lambda store: store.complete(job.id, job.fence, result, num_bytes, time.time()))
        self._folder.publish(job)

    Dispatcher._publish = _publish


def _nothing_put_back_after_a_start() -> None:
    from daifuku.server.store import Store

    Store.recover = lambda self, *, max_restarts, now: []


def _a_death_that_nobody_records() -> None:
    from daifuku.server.store import Store

    Store.bury = lambda self, job_id, fence, **_: True


def _keys_that_nobody_remembers() -> None:
    from daifuku.server.store import Store

    def _forgotten(self: Any, *_: Any) -> None:
        self._db.execute("DELETE FROM answers")

    Store._answered = _forgotten


def _no_fencing() -> None:
    from daifuku.server.dispatcher import Dispatcher
    from daifuku.server.store import Store

    def _unfenced(self: Any, change: str, values: Any, job_id: str, fence: int) -> bool:
        self._db.execute("DROP TRIGGER IF EXISTS jobs_end_once")
        return self._db.execute(f"UPDATE jobs SET {change} WHERE id = ?", (*values, job_id)).rowcount == 1

    async def _unheard(self: Any, job_id: str) -> None:
        pass

    async def _publish(self: Any, job: Any, result: Any) -> None:
        self._folder.publish(job)
        num_bytes = sum(file["bytes"] for file in result["files"].values())
        await self._recorded(lambda store: store.complete(job.id, job.fence, result, num_bytes, time.time()))

    Store._fenced, Dispatcher.cancel, Dispatcher._publish = _unfenced, _unheard, _publish


def _nothing_cleared_away() -> None:
    from daifuku.server.folder import DataFolder

    DataFolder.clear = lambda self, job: None
    DataFolder.tidy = lambda self, running, completed: None


def _one_checkpoint_for_all_jobs() -> None:
    from daifuku.server.folder import DataFolder

    DataFolder.checkpoint = lambda self, job: self.root / "checkpoints" / "common.resume.safetensors"


def _results_by_their_order() -> None:
    from daifuku.server import making

    make, earlier = making.make, []

    def _make(pipe: Any, opening: Any, task: Any, *rest: Any) -> Any:
        earlier.append(task.request)
        return make(pipe, opening, replace(task, request=earlier[0]), *rest)

    making.make = _make


def _a_hash_of_something_else() -> None:
    from daifuku.server import making

    published = making._published

    def _published(task: Any, *rest: Any) -> Any:
        result = published(task, *rest)
        result["files"]["video"]["sha256"] = result["files"]["thumbnail"]["sha256"]
        return result

    making._published = _published


def _a_clip_that_is_cut_after_its_hash() -> None:
    from daifuku.server import making

    published = making._published

    def _published(task: Any, *rest: Any) -> Any:
        result = published(task, *rest)
        clip = Path(task.folder) / "video.mp4"
        clip.write_bytes(clip.read_bytes()[:-100])
        return result

    making._published = _published


def _a_step_left_out_after_a_crash() -> None:
    from daifuku.server import making

    read = making.read_checkpoint

    def _read(path: Any) -> Any:
        about, start = read(path)
        return about, replace(start, index=start.index + 1)

    making.read_checkpoint = _read


UNLUCKY = 666
"""The seed of the requests that the workers below do not survive."""


def _unlucky(happens: Callable[[], object]) -> Callable[[], None]:
    """Something that a worker does in place of the clip of an unlucky request."""

    def _plant() -> None:
        from daifuku.server import making

        make = making.make

        def _make(pipe: Any, opening: Any, task: Any, *rest: Any) -> Any:
            if task.request["seed"] == UNLUCKY:
                happens()
            return make(pipe, opening, task, *rest)

        making.make = _make

    return _plant


def _recurse() -> None:
    _recurse()


def _hang() -> None:
    time.sleep(3600)


def _grow() -> None:
    bytearray(2**60)


def _chatter() -> None:
    for _ in range(2000):
        print("x" * 10_000)
        print("x" * 10_000, file=sys.stderr)


def _survived_by_its_worker() -> None:
    from daifuku.server.pool import LocalWorker

    async def _kill(self: Any) -> None:
        # It is told nothing, and nobody listens to it any more.
        self.card, self._writer, self._process = None, None, None
        self._gone.set()
        self._heard.put_nowait(None)

    LocalWorker.kill = _kill


MISFORTUNES = {
    "it ends": ("worker_crashed", _unlucky(lambda: os._exit(0))),
    "it exits": ("worker_crashed", _unlucky(sys.exit)),
    "it reads where it must not": ("worker_crashed", _unlucky(lambda: os.kill(os.getpid(), signal.SIGSEGV))),
    "it never ends": ("deadline", _unlucky(_hang)),
    "it calls itself for ever": ("internal", _unlucky(_recurse)),
    "it wants all memory": ("out_of_memory", _unlucky(_grow)),
    "it talks and talks": (None, _unlucky(_chatter)),
}
"""What may happen to a worker, and the code that the job then fails with; None where it is completed."""

FAULTS = {
    "a 202 before the commit": Fault(
        side="server", plant=_acknowledged_before_the_commit, shows_as="lost", by="after the answer"
    ),
    "recorded before it is published": Fault(
        side="server", plant=_recorded_before_it_is_published, shows_as="corrupt", by="before a clip is published"
    ),
    "nothing put back after a start": Fault(
        side="server", plant=_nothing_put_back_after_a_start, shows_as="lost", by="after a claim was committed"
    ),
    "a death that nobody records": Fault(
        side="server", plant=_a_death_that_nobody_records, shows_as="lost", by="after the middle step"
    ),
    "keys that nobody remembers": Fault(
        side="server", plant=_keys_that_nobody_remembers, shows_as="duplicated", by="after a job was committed"
    ),
    "no fencing": Fault(
        side="server", plant=_no_fencing, shows_as="revived", by="after a cancel was committed", passes=99
    ),
    "nothing cleared away": Fault(
        side="server", plant=_nothing_cleared_away, shows_as="left_behind", by="within a clip"
    ),
    "one checkpoint for all jobs": Fault(
        side="server", plant=_one_checkpoint_for_all_jobs, shows_as="left_behind", by="after the middle step"
    ),
    "results by their order": Fault(
        side="worker", plant=_results_by_their_order, shows_as="swapped", by="after a job was committed"
    ),
    "a hash of something else": Fault(
        side="worker", plant=_a_hash_of_something_else, shows_as="corrupt", by="after a job was committed"
    ),
    "a clip that is cut after its hash": Fault(
        side="worker", plant=_a_clip_that_is_cut_after_its_hash, shows_as="corrupt", by="after a job was committed"
    ),
    "a step left out after a crash": Fault(
        side="worker", plant=_a_step_left_out_after_a_crash, shows_as="swapped", by="after the middle step"
    ),
}

HARMLESS = {
    **{name: Fault(side="worker", plant=plant) for name, (_, plant) in MISFORTUNES.items()},
    "a worker that outlives its end": Fault(side="server", plant=_survived_by_its_worker),
}
"""What the promise survives."""
