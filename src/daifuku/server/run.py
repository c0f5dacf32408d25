"""Starting and ending a server: the order of things, and what signals do."""

import asyncio
import os
import signal
import socket
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from time import time
from typing import Any

import uvicorn
from starlette.types import ASGIApp

from daifuku.errors import InvalidRequest, UnwritableOutput
from daifuku.server.app import Around, build_app
from daifuku.server.asks import find_loras
from daifuku.server.database import Database, lock_folder
from daifuku.server.deadlines import with_deadlines
from daifuku.server.dispatcher import Dispatcher, Limits
from daifuku.server.feed import Feed
from daifuku.server.folder import DataFolder, Retention, sweep
from daifuku.server.keys import Doorkeeper, read_keys
from daifuku.server.logs import Log
from daifuku.server.metrics import Metrics
from daifuku.server.moderation import moderator_of
from daifuku.server.pool import LocalPool, Pool, Unusable
from daifuku.server.service import Service
from daifuku.server.settings import Settings
from daifuku.server.targets import Policy
from daifuku.server.tasks import Opening
from daifuku.server.webhooks import Deliverer, Manner, read_secret

BUILT_IN = "daifuku-tiny"
"""What clients call the built-in model."""

CLOSING_S = 2
"""For answers that are under way when everything else has ended."""


def served_name(settings: Settings) -> str:
    """What clients call the model: never a path of this machine."""
    if settings.model_name is not None:
        return settings.model_name
    if settings.model is None:
        return BUILT_IN
    path = Path(settings.model)
    return path.resolve().name if path.exists() else settings.model


AroundAt = Callable[[str], Around]
"""From the address that this machine reaches the API at, to what is put around it."""


def run(settings: Settings, listening: Callable[[str], None], around: AroundAt | None = None) -> None:
    """Serve until a signal ends it; `listening` is told the address. Raises InvalidRequest for what cannot work."""
    handle = lock_folder(settings.data)
    try:
        asyncio.run(_run(settings, listening, around))
    finally:
        os.close(handle)


async def _run(settings: Settings, listening: Callable[[str], None], around: AroundAt | None) -> None:
    log = Log(level=settings.log_level)
    asyncio.get_running_loop().set_exception_handler(lambda _, context: _note(log, context))
    doorkeeper = Doorkeeper(keys=[] if settings.keys is None else read_keys(settings.keys))
    sock = _bound(settings)
    service = _service(settings, log)
    await _tidy(service.folder, service.database)
    page = None if around is None else around(_address(sock, reachable=True))
    server = _server(settings, build_app(service, doorkeeper, log, page))
    await service.dispatcher.start()
    await service.deliverer.start()
    sweeping = asyncio.create_task(_sweep(service, settings.sweep_s, log))
    serving = asyncio.create_task(server.serve(sockets=[sock]))
    while not server.started and not serving.done():
        await asyncio.sleep(0.01)
    listening(_address(sock))
    failed = service.dispatcher.failed
    try:
        await _until_told(serving, failed)
    finally:
        # It answers until the end, so that whoever asks hears that it is not ready any more.
        service.draining = True
        log.info("draining", {})
        await service.dispatcher.drain(settings.drain_s)
        server.should_exit = True
        await serving
        sweeping.cancel()
        await asyncio.gather(sweeping, return_exceptions=True)
        await service.deliverer.close()
        service.database.close()
        log.info("ended", {})
    if failed.done():
        raise InvalidRequest(str(failed.result()))


def _note(log: Log, context: Mapping[str, Any]) -> None:
    """What nobody awaits goes wrong, as where there are no file descriptors for more connections."""
    error = context.get("exception")
    about = error.strerror if isinstance(error, OSError) else type(error).__name__
    log.warning("something went wrong in the background", {"error": about})


def _service(settings: Settings, log: Log) -> Service:
    folder = DataFolder(settings.data)
    database, feed, metrics = Database(folder.database), Feed(), Metrics()
    loras = find_loras(settings.loras)
    dispatcher = Dispatcher(
        pool=_pool(settings, log),
        database=database,
        folder=folder,
        feed=feed,
        loras=loras,
        limits=Limits(lease_s=settings.lease_s, deadline_s=settings.deadline_s, cancel_s=settings.cancel_s),
        metrics=metrics,
        log=log,
    )
    return Service(
        settings=settings,
        database=database,
        folder=folder,
        feed=feed,
        dispatcher=dispatcher,
        metrics=metrics,
        retention=Retention(age_s=settings.keep_s, num_bytes=settings.keep_bytes),
        name=served_name(settings),
        loras=loras,
        deliverer=Deliverer(manner=_manner(settings), database=database, feed=feed, metrics=metrics, log=log),
        moderator=moderator_of(settings.moderation, settings.moderation_s) if settings.moderation else None,
    )


def _manner(settings: Settings) -> Manner:
    secret = settings.webhook_secret
    return Manner(
        policy=Policy(
            hosts=frozenset(settings.webhook_hosts),
            anywhere=settings.webhooks == "public",
            private=settings.webhook_private,
        ),
        secret=read_secret(None if secret is None else secret.get_secret_value()),
        tries=settings.webhook_tries,
        retry_s=settings.webhook_retry_s,
        timeout_s=settings.webhook_s,
    )


def _server(settings: Settings, app: ASGIApp) -> "_Server":
    return _Server(
        uvicorn.Config(
            app,
            http=with_deadlines(header_s=settings.header_s, slow_reader_s=settings.slow_reader_s),
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="critical",
            access_log=False,
            server_header=False,
            limit_concurrency=settings.max_connections,
            timeout_keep_alive=max(1, round(settings.header_s)),
            timeout_graceful_shutdown=CLOSING_S,
        )
    )


def _pool(settings: Settings, log: Log) -> Pool:
    opening = Opening(
        model=settings.model,
        revision=settings.revision,
        variant=settings.variant,
        device_memory=settings.device_memory,
        served_as=served_name(settings),
        process_bytes=settings.worker_bytes,
        preview_every=settings.preview_every,
        checkpoint_every_s=settings.checkpoint_s,
        alive_every_s=settings.lease_s / 10,
    )
    return LocalPool(opening, settings.devices or [None], silence_s=settings.lease_s, log=log)


def _bound(settings: Settings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    sock = socket.socket(family)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((settings.host, settings.port))
    except OSError as error:
        sock.close()
        raise UnwritableOutput(
            f"{settings.host}:{settings.port} cannot be listened on: {error.strerror or error}. Try --port 0, which "
            "takes any that is free."
        ) from error
    return sock


def _address(sock: socket.socket, *, reachable: bool = False) -> str:
    """Where the server listens; `reachable`: where this machine finds it, also when it listens on all addresses."""
    host, port = sock.getsockname()[:2]
    if reachable:
        host = "127.0.0.1" if host == "0.0.0.0" else "::1" if host == "::" else host
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


async def _tidy(folder: DataFolder, database: Database) -> None:
    running = {job.id for job in await database.read(lambda store: store.unfinished())}
    kept = {job.id for job in await database.read(lambda store: store.kept())}
    await asyncio.to_thread(folder.tidy, running, kept)


async def _sweep(service: Service, every_s: float, log: Log) -> None:
    while True:
        try:
            found = await sweep(service.folder, service.database, service.retention, time())
        except (OSError, sqlite3.Error) as error:
            log.warning("old files could not be removed", {"error": str(error)})
        else:
            if found["jobs"]:
                log.info("files went", found)
        await asyncio.sleep(every_s)


async def _until_told(serving: "asyncio.Task[None]", failed: "asyncio.Future[Unusable]") -> None:
    told = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, told.set)
    waiting = asyncio.ensure_future(told.wait())
    await asyncio.wait((serving, failed, waiting), return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    for number in (signal.SIGINT, signal.SIGTERM):
        # A second one ends everything at once; what is on disk is enough to go on.
        loop.add_signal_handler(number, os._exit, 128 + number)


class _Server(uvicorn.Server):
    """Signals are ours: there is work to bring to safety first."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield
