"""A server without processes: its workers make their files at once, or when they are told."""

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from typing import Any

from starlette.testclient import TestClient

from daifuku.server.app import build_app
from daifuku.server.database import Database
from daifuku.server.dispatcher import Dispatcher, Limits
from daifuku.server.feed import Feed
from daifuku.server.folder import DataFolder, Retention
from daifuku.server.keys import ApiKey, Doorkeeper
from daifuku.server.logs import Log
from daifuku.server.metrics import Metrics
from daifuku.server.moderation import Moderator
from daifuku.server.pool import WorkerDied
from daifuku.server.service import Service
from daifuku.server.settings import Settings
from daifuku.server.targets import Policy
from daifuku.server.tasks import FILES, ModelCard, Task
from daifuku.server.webhooks import Deliverer, Manner

CARD = ModelCard(
    name="tiny", identity=None, device="cpu", defaults={"width": 64, "height": 64, "num_frames": 31, "fps": 20}
)
BODY = {"prompt": "a red ball", "seed": 1}
SILENT = Manner(policy=Policy(), secret=None, tries=3, retry_s=0.01, timeout_s=1.0)
"""No webhooks."""


class FakeWorker:
    """Answers a task with the reports of `script`; "wait" among them waits until `go` is set, "die" dies."""

    name = "fake"

    def __init__(self) -> None:
        self.card: ModelCard | None = CARD
        self.go = asyncio.Event()
        self.has_model = True
        self.script: list[str | dict[str, Any]] = ["done"]
        self.seen: list[Task] = []
        self._cancelled = asyncio.Event()

    async def ready(self) -> ModelCard:
        if not self.has_model:
            self.card = None
            await asyncio.Event().wait()
        self.card = CARD
        return CARD

    async def gone(self) -> None:
        await asyncio.Event().wait()

    async def run(self, task: Task) -> AsyncIterator[Mapping[str, Any]]:
        self.seen.append(task)
        self._cancelled.clear()
        for what in list(self.script):
            if what == "wait":
                waits = [asyncio.ensure_future(one.wait()) for one in (self.go, self._cancelled)]
                await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
                if self._cancelled.is_set():
                    yield {"event": "cancelled"}
                    return
            elif what == "die":
                raise WorkerDied
            elif what == "done":
                yield {"event": "done", "result": _made(Path(task.folder))}
            else:
                assert isinstance(what, dict)
                yield what

    async def cancel(self) -> None:
        self._cancelled.set()

    async def stop(self) -> None:
        self._cancelled.set()

    async def kill(self) -> None:
        self._cancelled.set()


def _made(folder: Path) -> dict[str, Any]:
    folder.mkdir(parents=True)
    for variant, (name, _) in FILES.items():
        (folder / name).write_bytes(b"0123456789 " + variant.encode())
    files = {variant: {"bytes": 20, "sha256": f"hash of {variant}"} for variant in FILES}
    return {"files": files, "frames_sha256": "hash of frames", "timings": {"text_s": 0.1}}


@dataclass(kw_only=True)
class FakePool:
    workers: Sequence[FakeWorker] = field(default_factory=lambda: [FakeWorker()])

    async def close(self) -> None:
        pass


@dataclass(kw_only=True)
class House:
    """A running server, and a client at its door."""

    service: Service
    client: TestClient
    worker: FakeWorker
    log: StringIO

    def until_ended(self, job_id: str) -> dict[str, Any]:
        """The job when it has ended, as its last event shows it."""
        self.client.get(f"/v1/videos/{job_id}/events")
        return self.client.get(f"/v1/videos/{job_id}").json()


@contextmanager
def house(
    data: Path,
    *,
    keys: Sequence[ApiKey] = (),
    loras: Mapping[str, Path] | None = None,
    script: Sequence[str | dict[str, Any]] = ("done",),
    settings: Mapping[str, Any] | None = None,
    has_model: bool = True,
    manner: Manner = SILENT,
    moderator: Moderator | None = None,
) -> Iterator[House]:
    """A server on a folder, with one fake worker."""
    pool, log = FakePool(), StringIO()
    pool.workers[0].has_model = has_model
    pool.workers[0].script = list(script)
    folder, feed, metrics = DataFolder(data), Feed(), Metrics()
    database = Database(folder.database)
    dispatcher = Dispatcher(
        pool=pool,
        database=database,
        folder=folder,
        feed=feed,
        loras=loras or {},
        limits=Limits(lease_s=30.0, deadline_s=60.0, cancel_s=5.0),
        metrics=metrics,
        log=Log(log),
    )
    service = Service(
        settings=Settings(**{"data": data, **(settings or {})}),
        database=database,
        folder=folder,
        feed=feed,
        dispatcher=dispatcher,
        metrics=metrics,
        retention=Retention(age_s=100.0, num_bytes=10**9),
        name="tiny",
        loras=loras or {},
        deliverer=Deliverer(manner=manner, database=database, feed=feed, metrics=metrics, log=Log(log)),
        moderator=moderator,
    )
    dispatcher.card = CARD if has_model else None
    app = build_app(service, Doorkeeper(keys=keys), Log(log))
    with TestClient(app, base_url="http://localhost") as client:
        assert client.portal is not None
        client.portal.call(dispatcher.start)
        client.portal.call(service.deliverer.start)
        yield House(service=service, client=client, worker=pool.workers[0], log=log)
        client.portal.call(dispatcher.drain, 0.0)
        client.portal.call(service.deliverer.close)
    database.close()
