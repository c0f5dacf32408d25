"""Runs cases: sides get ready and warm up, then take turns; one record for each case says what came out."""

import datetime
import fnmatch
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import numpy as np
import torch

from daifuku.bench.case import Action, Build, Case
from daifuku.bench.machine import this_machine, versions
from daifuku.bench.ratio import speed_ratio
from daifuku.bench.runner import Process, Runner, open_runner
from daifuku.errors import DaifukuError, InvalidRequest
from daifuku.runtime.machine import multiply_rate
from daifuku.weights.load import as_dtype

Tell = Callable[[str], None]
"""Hears what is going on."""

Record = dict[str, Any]
"""What is known of a case after it ran, as JSON. `bench/results/README.md` explains its fields."""

Measure = Callable[..., Record]
"""Makes the record of a case in its prepared folder: `run_case`, or another with the same arguments."""

MIB = 2**20


def choose(cases: Sequence[Case], names: Sequence[str]) -> list[Case]:
    """The cases of those names, which may be patterns such as dit_*; all when none is named. Raises InvalidRequest."""
    for name in names:
        if not fnmatch.filter([case.name for case in cases], name):
            raise InvalidRequest(f"there is no case {name!r}. Try `daifuku bench --list`, which names them all.")
    return [case for case in cases if not names or any(fnmatch.fnmatch(case.name, name) for name in names)]


def run_cases(
    cases: Sequence[Case], *, rounds: int | None = None, tell: Tell, measure: Measure | None = None
) -> Iterator[Record]:
    """A record of each case that can run here. `rounds` replaces the cases' own numbers, `measure` is `run_case`.

    What is left out is told with the reason. A side that fails is left out from then on, and the others go on.
    """
    with TemporaryDirectory(prefix="daifuku-bench-") as root:
        folders: dict[str, Path] = {}
        for case in cases:
            if case.device == "cuda" and not torch.cuda.is_available():
                tell(f"{case.name} is skipped: there is no CUDA device here")
                continue
            # Weights that several cases read are written once.
            key = case.name if case.prepare is None else repr(case.prepare)
            if key not in folders:
                folders[key] = Path(root) / str(len(folders))
                folders[key].mkdir()
                if case.prepare is not None:
                    tell(f"{case.name}: writing the weights")
                    _prepare(case.prepare, folders[key])
            yield (measure or run_case)(case, folders[key], rounds=rounds or case.rounds, tell=tell)


def run_case(case: Case, folder: Path, *, rounds: int, tell: Tell) -> Record:
    """The record of a case whose folder is prepared."""
    began = perf_counter()
    with ExitStack() as stack:
        turns = _Turns(case, lambda line: tell(f"{case.name}: {line}"))
        turns.open(folder, stack)
        turns.take(rounds, until=began + case.limit_s)
        memory = {name: asdict(runner.memory()) for name, runner in turns.runners.items()}
        results = turns.results()
    exact = turns.exact(folder) if results else {}
    sides: Record = {}
    for side in case.sides:
        if side.name not in turns.runners:
            continue
        reference, result = exact.get(side.exact or ""), results.get(side.name)
        sides[side.name] = {
            "median_s": median(turns.samples[side.name]),
            "samples_s": turns.samples[side.name],
            "first_s": turns.first_s.get(side.name),
            **{what.replace("bytes", "mib"): _mib(number) for what, number in memory[side.name].items()},
            "error": None if reference is None or result is None else _difference(result, reference),
        }
    pairs = [*((side.name, case.sides[0].name) for side in case.sides[1:]), *case.pairs]
    measured = [{"this": this, "that": that} for this, that in pairs if this in sides and that in sides]
    return {
        **circumstances(case),
        "flops": case.flops,
        "multiply_flops_per_s": None if case.flops is None else _multiply_rate(case),
        "sides": sides,
        "ratios": [
            pair | asdict(speed_ratio(turns.samples[pair["this"]], turns.samples[pair["that"]])) for pair in measured
        ],
        "differences": [
            pair | _difference(results[pair["this"]], results[pair["that"]])
            for pair in measured
            if pair["this"] in results and pair["that"] in results
        ],
        "skipped": turns.skipped,
        "seconds": perf_counter() - began,
    }


def circumstances(case: Case) -> Record:
    """What, when and where: the fields that every record begins with."""
    return {
        "case": case.name,
        "about": case.about,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": asdict(this_machine()),
        "versions": versions(),
        "shapes": dict(case.shapes),
        "dtype": case.dtype,
        "device": case.device,
    }


class _Turns:
    """The sides of a case while they run. One that fails moves from `runners` to `skipped`."""

    def __init__(self, case: Case, tell: Tell) -> None:
        self.case, self.tell = case, tell
        self.runners: dict[str, Runner] = {}
        self.samples: dict[str, list[float]] = {}
        self.first_s: dict[str, float] = {}
        self.skipped: dict[str, str] = {}

    def open(self, folder: Path, stack: ExitStack) -> None:
        """Makes every side ready and warms it up."""
        for side in self.case.sides:
            reason = side.available()
            if reason is not None:
                self._leave_out(side.name, reason)
                continue
            self.tell(f"{side.name} gets ready")
            with self._guarded(side.name):
                runner = open_runner(side, folder)
                stack.callback(runner.close)
                warm = [runner.sample() for _ in range(self.case.warm)]
                self.runners[side.name], self.samples[side.name] = runner, []
                if warm:
                    self.first_s[side.name] = warm[0]

    def take(self, rounds: int, *, until: float) -> None:
        """A sample of every side in each round, in an order that alternates."""
        for index in range(rounds):
            if index > 0 and perf_counter() > until:
                self.tell(f"stops after {index} of {rounds} rounds: {self.case.limit_s} s are over")
                break
            for name in sorted(self.runners, key=self._place, reverse=index % 2 == 1):
                with self._guarded(name):
                    self.samples[name].append(self.runners[name].sample())

    def results(self) -> dict[str, np.ndarray]:
        """What each side computes, where that can be compared."""
        found: dict[str, np.ndarray] = {}
        for name in list(self.runners):
            with self._guarded(name):
                result = self.runners[name].output()
                found |= {} if result is None else {name: result}
        return found

    def exact(self, folder: Path) -> dict[str, np.ndarray]:
        """The case's exact results."""
        found: dict[str, np.ndarray] = {}
        for name, build in self.case.exact.items():
            with self._guarded(f"float64 of {name}"):
                found[name] = _result(build, folder)
        return found

    def _place(self, name: str) -> int:
        return list(self.samples).index(name)

    @contextmanager
    def _guarded(self, name: str) -> Iterator[None]:
        try:
            yield
        except DaifukuError as error:
            self.runners.pop(name, None)
            self._leave_out(name, f"failed: {error}")

    def _leave_out(self, name: str, reason: str) -> None:
        self.skipped[name] = reason
        self.tell(f"{name} is left out: {reason}")


def _prepare(prepare: Callable[[Path], None], folder: Path) -> None:
    """In a process that ends, so that its memory is free again."""
    Process(partial(_prepared, prepare), folder).close()


def _prepared(prepare: Callable[[Path], None], folder: Path) -> Action:
    prepare(folder)
    return Action(run=lambda: None)


def _result(build: Build, folder: Path) -> np.ndarray:
    process = Process(build, folder)
    try:
        result = process.output()
    finally:
        process.close()
    assert result is not None, "an exact result is an output"
    return result


def _difference(result: np.ndarray, reference: np.ndarray) -> dict[str, float]:
    """The largest difference, and the root mean square of all relative to that of the reference."""
    difference = result - reference
    return {
        "max_abs": float(np.abs(difference).max()),
        "relative": float(np.sqrt(np.square(difference).mean() / np.square(reference).mean())),
    }


def _multiply_rate(case: Case) -> float:
    return multiply_rate(torch.device(case.device), as_dtype(case.dtype))


def _mib(num_bytes: int | None) -> float | None:
    return None if num_bytes is None else round(num_bytes / MIB, 1)
