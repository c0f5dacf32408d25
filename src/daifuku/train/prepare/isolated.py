"""A function run in a process of its own, which may crash, hang or eat memory without harm to the rest."""

import multiprocessing
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, TypeVar

from daifuku.errors import MediaError

R = TypeVar("R")


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """What the process may take."""

    memory_bytes: int = 6 * 2**30
    """Address space; systems other than Linux keep no such limit."""
    time_s: float = 7200.0


def isolated(function: Callable[..., R], *arguments: Any, bounds: Bounds) -> R:
    """What `function` returns. Raises MediaError for what it raises, and where its process ends in any other way."""
    context = multiprocessing.get_context("forkserver" if sys.platform == "linux" else "spawn")
    if sys.platform == "linux":
        # Processes are then copies of one that has imported this already, which takes milliseconds.
        context.set_forkserver_preload(["__main__", function.__module__])
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_run, args=(sender, bounds.memory_bytes, function, arguments), daemon=True)
    process.start()
    sender.close()
    try:
        if not receiver.poll(bounds.time_s):
            raise MediaError(f"it took longer than {bounds.time_s:g} s")
        good, result = receiver.recv()
    except EOFError:
        process.join()
        raise MediaError(f"the decoder crashed on it ({_ending(process.exitcode)})") from None
    finally:
        process.kill()
        process.join()
        receiver.close()
    if not good:
        raise MediaError(result)
    return result


def _run(sender: Connection, memory_bytes: int, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    if sys.platform == "linux":
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    try:
        sender.send((True, function(*arguments)))
    except MemoryError:
        sender.send((False, f"it needs more than {memory_bytes / 2**30:.1f} GiB of memory"))
    except MediaError as error:
        sender.send((False, str(error)))
    except Exception as error:  # noqa: BLE001 (whatever a decoder may raise, it is this file's fault alone)
        sender.send((False, f"it cannot be decoded ({type(error).__name__})"))


def _ending(code: int | None) -> str:
    if code is not None and code < 0:
        return signal.Signals(-code).name
    return f"exit code {code}"
