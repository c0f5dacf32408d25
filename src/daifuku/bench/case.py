"""What can be measured: a case compares sides, and each side does the same work in its own way."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from daifuku.registry import ready
from daifuku.runtime.compile import available as compile_problem


@dataclass(frozen=True, kw_only=True)
class Action:
    """The work of a side, ready to start: weights are read, inputs are made."""

    run: Callable[[], object]
    """What is timed."""
    output: Callable[[], Tensor] | None = None
    """The same once more, untimed, for its result. None where there is nothing to compare."""


Build = Callable[[Path], Action]
"""Makes the action from the case's folder, in the side's own process: a function of a module, or a `partial` of one."""


Available = Callable[[], str | None]
"""The reason why something cannot run here, or None."""


@dataclass(frozen=True, kw_only=True)
class Side:
    """One way to do the work of a case: by `build` or by `command`. With neither it is never available."""

    name: str
    build: Build | None = None
    command: Callable[[Path], Sequence[str]] | None = None
    """A command line that is timed from its start to its end; the folder is the case's."""
    available: Available = ready
    fresh: bool = False
    """Whether each sample needs a new process, as reading weights does: a second time finds memory already there."""
    exact: str | None = None
    """Which of the case's exact results this side comes near to."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """Sides that do the same work, of which the first is what the others are measured against."""

    name: str
    about: str
    sides: tuple[Side, ...]
    prepare: Callable[[Path], None] | None = None
    """Fills the folder that all sides read. Cases that prepare the same share one folder."""
    exact: Mapping[str, Build] = field(default_factory=dict)
    """The same work in float64, which is run once: what errors are errors from."""
    pairs: tuple[tuple[str, str], ...] = ()
    """Sides (this, that) whose times and results are also compared with each other."""
    shapes: Mapping[str, Any] = field(default_factory=dict)
    flops: int | None = None
    """Floating-point operations of the work where a formula tells, a multiply-add being two."""
    dtype: str = "float32"
    device: str = "cpu"
    rounds: int = 10
    warm: int = 1
    """Runs of each side before the first round."""
    limit_s: int = 120
    """No round begins after so many seconds, whatever `rounds` says."""


def has(*modules: str) -> Available:
    """An `available` that asks for modules."""

    def missing() -> str | None:
        absent = [name for name in modules if not _found(name)]
        return f"{', '.join(absent)} is not installed" if absent else None

    return missing


def compiles(device: str, *modules: str) -> Available:
    """An `available` that asks for modules, and for what torch.compile needs on a device."""
    return lambda: compile_problem(torch.device(device)) or has(*modules)()


def _found(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # a package above it is missing
        return False
