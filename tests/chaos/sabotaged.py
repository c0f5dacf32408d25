"""python -m tests.chaos.sabotaged FUSE FAULT serve ...: the server with moments to die at, and a fault.

Both are put in from outside: what is released knows nothing of them.

FUSE is a file that may not exist: while it names a moment of `moments.py`, the process that reaches that moment kills
itself. FAULT is one of `faults.py`, or "none". The worker processes of such a server are sabotaged in the same way.
"""

import asyncio
import functools
import inspect
import os
import signal
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from tests.chaos.faults import FAULTS, HARMLESS
from tests.chaos.moments import MOMENTS, Moment

WORKER = "daifuku.server.worker"


class Fuse:
    """A file that names the moment to die at, and how often it may pass before."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def light(self, moment: str, passes: int = 0) -> None:
        """From now on the moment kills whoever reaches it, once."""
        draft = self.path.with_suffix(".draft")
        draft.write_text(f"{passes} {moment}")
        draft.replace(self.path)

    @property
    def is_burnt(self) -> bool:
        """Whether the moment has come."""
        return not self.path.exists()

    def reached(self, moment: str) -> bool:
        """Whether this is the moment to die at; then it is so for nobody else."""
        try:
            passes, _, name = self.path.read_text().partition(" ")
            if name != moment:
                return False
            if int(passes):
                self.light(moment, int(passes) - 1)
                return False
            self.path.unlink()
        except FileNotFoundError:
            return False
        return True


def die() -> None:
    """Like a power cut for this process: nothing is tidied up."""
    os.kill(os.getpid(), signal.SIGKILL)


def replace(target: str, wrap: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    """Puts what `wrap` makes of a function or method, "module:Class.name", in its place."""
    module, _, path = target.partition(":")
    owner: Any = import_module(module)
    *parents, name = path.split(".")
    for parent in parents:
        owner = getattr(owner, parent)
    setattr(owner, name, wrap(getattr(owner, name)))


def mined(fuse: Fuse, moment: Moment) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Makes of a function one that kills its process when the moment has come."""

    def _pass(came: bool, result: Any, args: tuple[Any, ...]) -> None:
        if moment.statement is not None and not came:
            args[0].set_trace_callback(_statement)
        elif came == moment.after and moment.when(result, *args) and fuse.reached(moment.name):
            die()

    def _statement(text: str) -> None:
        if moment.statement is not None and moment.statement in text and fuse.reached(moment.name):
            die()

    def _wrap(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def _plain(*args: Any, **kwargs: Any) -> Any:
            _pass(False, None, args)
            result = function(*args, **kwargs)
            _pass(True, result, args)
            return result

        @functools.wraps(function)
        async def _async(*args: Any, **kwargs: Any) -> Any:
            _pass(False, None, args)
            result = await function(*args, **kwargs)
            _pass(True, result, args)
            return result

        return _async if inspect.iscoroutinefunction(function) else _plain

    return _wrap


def _sabotage_workers(fuse: Path, fault: str) -> None:
    """Workers that this process starts are sabotaged too."""
    start = asyncio.create_subprocess_exec

    async def _start(*command: str, **options: Any) -> Any:
        assert command[1:3] == ("-m", WORKER), "the only process that a server starts is its worker"
        return await start(command[0], "-m", "tests.chaos.sabotaged", f"{fuse}", fault, *command[2:], **options)

    asyncio.create_subprocess_exec = _start


def main() -> None:
    """The server, or one of its workers."""
    path, fault, command = sys.argv[1:4]
    sys.argv[:] = [sys.argv[0], *sys.argv[3:]]
    side = "worker" if command == WORKER else "server"
    for moment in MOMENTS:
        if moment.side == side:
            replace(moment.target, mined(Fuse(Path(path)), moment))
    planted = {**FAULTS, **HARMLESS}.get(fault)
    if planted is not None and planted.side == side:
        planted.plant()
    if side == "worker":
        import_module(WORKER).main(int(sys.argv[2]))
    else:
        from daifuku.cli.main import main as daifuku

        _sabotage_workers(Path(path), fault)
        daifuku()


if __name__ == "__main__":
    main()
