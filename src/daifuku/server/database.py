"""The one file of the jobs, the one thread that writes it, and the lock that keeps a second server out."""

import asyncio
import fcntl
import os
import queue
import sqlite3
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from daifuku.errors import InvalidRequest, UnwritableOutput
from daifuku.server.schema import migrate
from daifuku.server.store import Store

T = TypeVar("T")

MAX_TOGETHER = 64
"""Changes that share one commit, and so one wait for the disk."""


def lock_folder(folder: Path) -> int:
    """The folder is this process's until it ends. Returns a file descriptor to keep open.

    Raises InvalidRequest where another server has it, and UnwritableOutput.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        handle = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise UnwritableOutput(f"the data folder {folder} cannot be used: {error.strerror}. Try --data.") from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(handle)
        raise InvalidRequest(
            f"another server works on the data folder {folder}. Stop that one, or name another folder with --data."
        ) from error
    return handle


def connect(path: Path) -> sqlite3.Connection:
    """A connection whose commits are on disk when they return. Raises InvalidRequest for a file that is damaged."""
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=10)
    connection.row_factory = sqlite3.Row
    try:
        (journal,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
        connection.execute("PRAGMA synchronous = FULL")
        (synchronous,) = connection.execute("PRAGMA synchronous").fetchone()
        if (journal, synchronous) != ("wal", 2):
            raise InvalidRequest(f"{path}: this disk cannot keep a write-ahead log. Try --data on a local disk.")
        migrate(connection)
    except sqlite3.Error as error:
        connection.close()
        raise InvalidRequest(f"the job database {path} cannot be opened: {error}.") from error
    except InvalidRequest:
        connection.close()
        raise
    return connection


@dataclass(frozen=True, kw_only=True)
class _Change:
    make: Callable[[Store], Any]
    done: "Future[Any]"


class Database:
    """Reads and changes of the store for asyncio. A change is on disk, for good, when its await returns.

    Changes run one after the other on one thread; those that wait at the same time share a commit.
    """

    def __init__(self, path: Path) -> None:
        self._writes = connect(path)
        self._reads = connect(path)
        self._changes: queue.SimpleQueue[_Change | None] = queue.SimpleQueue()
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="read-jobs")
        self._writer = threading.Thread(target=self._write, name="write-jobs", daemon=True)
        self._writer.start()

    async def read(self, look: Callable[[Store], T]) -> T:
        """What `look` finds. Raises what it raises."""
        return await asyncio.get_running_loop().run_in_executor(self._reader, look, Store(self._reads))

    async def change(self, make: Callable[[Store], T]) -> T:
        """What `make` returns, once that is on disk. Raises what it raises; nothing is stored then."""
        done: Future[T] = Future()
        self._changes.put(_Change(make=make, done=done))
        # A client that goes away does not undo what is under way.
        return await asyncio.shield(asyncio.wrap_future(done))

    def close(self) -> None:
        """Ends after the last change."""
        self._changes.put(None)
        self._writer.join()
        self._reader.shutdown()
        self._reads.close()
        self._writes.close()

    def _write(self) -> None:
        while True:
            together = [self._changes.get()]
            while len(together) < MAX_TOGETHER and not self._changes.empty():
                together.append(self._changes.get())
            self._commit([change for change in together if change is not None])
            if None in together:
                return

    def _commit(self, changes: list[_Change]) -> None:
        answers: list[tuple[_Change, Any, Exception | None]] = []
        try:
            self._writes.execute("BEGIN IMMEDIATE")
            for change in changes:
                self._writes.execute("SAVEPOINT one")
                try:
                    answers.append((change, change.make(Store(self._writes)), None))
                except Exception as error:  # noqa: BLE001 (it belongs to who asked for the change)
                    self._writes.execute("ROLLBACK TO one")
                    answers.append((change, None, error))
                self._writes.execute("RELEASE one")
            self._writes.execute("COMMIT")
        except sqlite3.Error as error:
            # A full disk, for example: then none of them happened.
            if self._writes.in_transaction:
                with suppress(sqlite3.Error):
                    self._writes.execute("ROLLBACK")
            answers = [(change, None, error) for change in changes]
        for change, value, error in answers:
            if error is None:
                change.done.set_result(value)
            else:
                change.done.set_exception(error)
