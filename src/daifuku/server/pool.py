"""Workers: what the server needs of them, and those that are processes of this machine."""

import asyncio
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from itertools import count
from typing import Any, Protocol, runtime_checkable

from daifuku.server.logs import Log
from daifuku.server.messages import BrokenMessage, Message, packed, receive
from daifuku.server.tasks import ALIVE, ENDS, READY, UNUSABLE, ModelCard, Opening, Task

START_S = 600.0
"""A worker that has not read its model by then is started anew."""


class WorkerDied(Exception):
    """The worker is gone, or gave no sign of life for too long."""


class Unusable(Exception):
    """No worker can work as it is configured; the message is for whoever started the server."""


@runtime_checkable
class Worker(Protocol):
    """Makes one clip at a time."""

    @property
    def name(self) -> str: ...

    @property
    def card(self) -> ModelCard | None:
        """The model that is loaded; None while there is none, as after a crash."""
        ...

    async def ready(self) -> ModelCard:
        """Waits until a clip can be made, and starts whatever that takes. Raises Unusable."""
        ...

    async def gone(self) -> None:
        """Waits until no model is loaded."""
        ...

    def run(self, task: Task) -> AsyncIterator[Mapping[str, Any]]:
        """The reports of a task, the last of which is one of `ENDS`; signs of life among them. Raises WorkerDied."""
        ...

    async def cancel(self) -> None:
        """The task that runs ends after its step, without anything to show."""
        ...

    async def stop(self) -> None:
        """The task that runs ends after its step, and leaves a checkpoint."""
        ...

    async def kill(self) -> None:
        """The worker ends at once; `ready` starts it again."""
        ...


@runtime_checkable
class Pool(Protocol):
    """All workers of a server. Other kinds come as other pools."""

    @property
    def workers(self) -> Sequence[Worker]: ...

    async def close(self) -> None:
        """Every worker ends."""
        ...


class LocalPool:
    """One process for each device of this machine."""

    def __init__(self, opening: Opening, devices: Sequence[str | None], *, silence_s: float, log: Log) -> None:
        self._workers = [
            LocalWorker(f"{i}", replace(opening, device=device), silence_s=silence_s, log=log)
            for i, device in enumerate(devices)
        ]

    @property
    def workers(self) -> "Sequence[LocalWorker]":
        return self._workers

    async def close(self) -> None:
        """Every process ends."""
        await asyncio.gather(*(worker.kill() for worker in self._workers))


class LocalWorker:
    """A process of its own group, started when it is needed."""

    def __init__(self, name: str, opening: Opening, *, silence_s: float, log: Log) -> None:
        self.name = name
        self.card: ModelCard | None = None
        self._opening = opening
        self._silence_s = silence_s
        self._log = log
        self._process: asyncio.subprocess.Process | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._listener: asyncio.Task[None] | None = None
        self._heard: asyncio.Queue[Message | None] = asyncio.Queue()
        self._gone = asyncio.Event()
        self._num_heard = 0
        self._numbers = count(1)

    async def ready(self) -> ModelCard:
        """See `Worker`. A worker that dies before it is ready is started again, more and more slowly."""
        for delay_s in (0.0, 0.5, 2.0, 5.0):
            if self.card is not None:
                return self.card
            await asyncio.sleep(delay_s)
            try:
                async with asyncio.timeout(START_S):
                    return await self._start()
            except (WorkerDied, TimeoutError):
                await self.kill()
        raise Unusable("the worker process ends before it has read the model; its messages stand above.")

    async def gone(self) -> None:
        """See `Worker`."""
        await self._gone.wait()

    async def run(self, task: Task) -> AsyncIterator[Mapping[str, Any]]:
        """See `Worker`."""
        number = next(self._numbers)
        await self._send({"do": "run", "id": number, "task": asdict(task)})
        while True:
            message = await self._hear()
            if message["event"] == ALIVE or message.get("id") == number:
                yield message
                if message["event"] in ENDS:
                    return

    async def cancel(self) -> None:
        """See `Worker`."""
        with suppress(WorkerDied):
            await self._send({"do": "cancel"})

    async def stop(self) -> None:
        """See `Worker`."""
        with suppress(WorkerDied):
            await self._send({"do": "stop"})

    async def kill(self) -> None:
        """The process and all that it has started end at once."""
        self.card = None
        self._gone.set()
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        process, self._process = self._process, None
        if process is not None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()

    async def _start(self) -> ModelCard:
        await self.kill()
        ours, theirs = socket.socketpair()
        try:
            # A group of its own: a terminal's Ctrl-C goes to the server alone, which then decides.
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "daifuku.server.worker", str(theirs.fileno())),
                pass_fds=[theirs.fileno()],
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                start_new_session=True,
            )
        finally:
            theirs.close()
        reader, self._writer = await asyncio.open_connection(sock=ours)
        self._heard, self._gone = asyncio.Queue(), asyncio.Event()
        self._listener = asyncio.create_task(self._listen(reader, self._heard))
        pid = self._process.pid
        self._log.info("worker started", {"worker": self.name, "pid": pid})
        await self._send({"opening": asdict(self._opening)})
        while (message := await self._hear())["event"] != READY:
            if message["event"] == UNUSABLE:
                await self.kill()
                raise Unusable(message["message"])
        self.card = ModelCard(**message["card"])
        self._log.info("worker ready", {"worker": self.name, "pid": pid})
        return self.card

    async def _listen(self, reader: asyncio.StreamReader, heard: "asyncio.Queue[Message | None]") -> None:
        """Hears the process also while nobody asks it for anything, so that its death is noticed at once."""
        watching = asyncio.create_task(self._watch())
        with suppress(BrokenMessage):
            while (message := await receive(reader)) is not None and isinstance(message.get("event"), str):
                self._num_heard += 1
                # Signs of life of an idle process would only pile up.
                if message["event"] != ALIVE or heard.empty():
                    heard.put_nowait(message)
        watching.cancel()
        heard.put_nowait(None)
        if heard is self._heard:
            await self.kill()

    async def _watch(self) -> None:
        """Ends a process that has its model and is silent for too long; to read the model has a limit of its own.

        Only pauses of this loop are counted: while this process is stopped itself, it hears nobody.
        """
        pause_s, silent_s = self._silence_s / 20, 0.0
        while silent_s < self._silence_s:
            num_heard = self._num_heard
            await asyncio.sleep(pause_s)
            is_silent = self.card is not None and self._num_heard == num_heard
            silent_s = silent_s + pause_s if is_silent else 0.0
        await self.kill()

    async def _send(self, message: Message) -> None:
        if self._writer is None:
            raise WorkerDied
        try:
            self._writer.write(packed(message))
            await self._writer.drain()
        except (ConnectionError, RuntimeError) as error:
            raise WorkerDied from error

    async def _hear(self) -> Message:
        message = await self._heard.get()
        if message is None:
            self._heard.put_nowait(None)
            raise WorkerDied
        return message
