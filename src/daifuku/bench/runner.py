"""Runs sides, each in a process of its own, so that neither memory nor threads of one reach another."""

import multiprocessing
import os
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from time import perf_counter
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch

from daifuku.bench.case import Action, Build, Side
from daifuku.bench.kinds import Profile, profiled
from daifuku.bench.memory import peak_bytes, resident_bytes, run_command
from daifuku.errors import DaifukuError

KEPT_BYTES = 4 * 2**30
"""A process whose cache of GPU memory is larger gives it back after each sample, since other sides want room too."""


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Resident memory of a side's process, all that it imports included."""

    idle_bytes: int | None
    """When everything was ready, before the first run; None for a command, which is never idle."""
    peak_bytes: int
    gpu_peak_bytes: int | None = None


@runtime_checkable
class Runner(Protocol):
    """A side that can be asked for samples."""

    def sample(self) -> float:
        """Seconds of one more run. Raises DaifukuError when the side fails."""
        ...

    def memory(self) -> Memory:
        """As it is after the runs so far."""
        ...

    def output(self) -> np.ndarray | None:
        """What the side computes, if that can be compared."""
        ...

    def close(self) -> None:
        """End its process."""
        ...


def open_runner(side: Side, folder: Path) -> Runner:
    """Starts what a side needs, and waits until it is ready. Raises DaifukuError when it fails."""
    if side.command is not None:
        return CommandRunner(side.command, folder)
    return open_process(side, folder)


def open_process(side: Side, folder: Path) -> "Process | FreshRunner":
    """The same for a side that is no command: what it does can be looked into."""
    assert side.build is not None, f"the side {side.name} is never available"
    return FreshRunner(side.build, folder) if side.fresh else Process(side.build, folder)


class Process:
    """A side in a process that stays: what it builds is used again for each sample."""

    def __init__(self, build: Build, folder: Path) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, build, folder), daemon=True)
        self._process.start()
        theirs.close()
        self._receive()

    def sample(self) -> float:
        return self._ask("sample")

    def profile(self) -> Profile:
        """One more run, watched."""
        return self._ask("profile")

    def memory(self) -> Memory:
        return self._ask("memory")

    def output(self) -> np.ndarray | None:
        return self._ask("output")

    def close(self) -> None:
        self._connection.close()
        self._process.join(timeout=10)
        self._process.kill()

    def _ask(self, what: str) -> Any:
        self._connection.send(what)
        return self._receive()

    def _receive(self) -> Any:
        try:
            error, answer = self._connection.recv()
        except (EOFError, ConnectionResetError):
            self._process.join(timeout=10)
            raise DaifukuError(f"its process died with exit code {self._process.exitcode}") from None
        if error is not None:
            raise DaifukuError(error)
        return answer


class FreshRunner:
    """A side that starts anew for each sample. Starting is not timed."""

    def __init__(self, build: Build, folder: Path) -> None:
        self._build, self._folder = build, folder
        self._memory: Memory | None = None

    def sample(self) -> float:
        process = Process(self._build, self._folder)
        try:
            seconds = process.sample()
            self._memory = process.memory()
        finally:
            process.close()
        return seconds

    def profile(self) -> Profile:
        """The first run of a new process, watched."""
        process = Process(self._build, self._folder)
        try:
            return process.profile()
        finally:
            process.close()

    def memory(self) -> Memory:
        assert self._memory is not None, "memory is known after a sample"
        return self._memory

    def output(self) -> np.ndarray | None:
        return None

    def close(self) -> None:
        """Nothing is held open."""


class CommandRunner:
    """A side that is a command line."""

    def __init__(self, command: Callable[[Path], Any], folder: Path) -> None:
        self._command, self._folder = command(folder), folder
        self._peak_bytes = 0

    def sample(self) -> float:
        spent = run_command(self._command, self._folder)
        self._peak_bytes = max(self._peak_bytes, spent.peak_bytes)
        return spent.seconds

    def memory(self) -> Memory:
        return Memory(idle_bytes=None, peak_bytes=self._peak_bytes)

    def output(self) -> np.ndarray | None:
        return None

    def close(self) -> None:
        """Nothing is held open."""


def _serve(connection: Connection, build: Build, folder: Path) -> None:
    """The life of a side's process: answers (error, answer) until the other end hangs up."""
    # Libraries' talk: what goes wrong is answered instead.
    silent = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(silent, stream)
    try:
        action = build(folder)
        idle = resident_bytes()
        connection.send((None, None))
        while True:
            connection.send((None, _answer(connection.recv(), action, idle)))
    except EOFError:
        return
    except Exception as error:  # noqa: BLE001 (whatever goes wrong in a side is that side's result)
        where = traceback.extract_tb(error.__traceback__)[-1]
        what = f"{type(error).__name__}: {error}".splitlines()[0]
        connection.send((f"{what} ({Path(where.filename).name}, line {where.lineno})", None))


def _answer(what: str, action: Action, idle: int) -> Any:
    on_gpu = torch.cuda.is_initialized()
    match what:
        case "sample":
            started = perf_counter()
            action.run()
            if on_gpu:
                torch.cuda.synchronize()
            seconds = perf_counter() - started
            if on_gpu and torch.cuda.memory_reserved() > KEPT_BYTES:
                torch.cuda.empty_cache()
            return seconds
        case "profile":
            return profiled(action.run)
        case "memory":
            gpu = torch.cuda.max_memory_allocated() if on_gpu else None
            return Memory(idle_bytes=idle, peak_bytes=peak_bytes(), gpu_peak_bytes=gpu)
        case _:
            return None if action.output is None else action.output().double().cpu().numpy()
