"""Why a case is not faster: where the time of our sides goes, by kind of operator."""

from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from time import perf_counter

from daifuku.bench.case import Case, Side
from daifuku.bench.compare import OURS
from daifuku.bench.kinds import Profile
from daifuku.bench.run import Record, Tell, circumstances
from daifuku.bench.runner import open_process
from daifuku.errors import DaifukuError, InvalidRequest

TURNS = 3


def profilable(cases: Sequence[Case]) -> list[Case]:
    """The cases of which a side of ours computes in a process of the bench. Raises InvalidRequest for none."""
    found = [case for case in cases if _ours(case)]
    if not found:
        names = ", ".join(case.name for case in cases)
        raise InvalidRequest(f"a command is not looked into, and {names} is nothing else. Try --profile 'dit_*'.")
    return found


def profile_case(case: Case, folder: Path, *, rounds: int, tell: Tell) -> Record:
    """The record of a case whose folder is prepared: of each side of ours the turn whose time is the median one."""
    began = perf_counter()
    profiles: Record = {}
    skipped: dict[str, str] = {}
    for side in _ours(case):
        reason = side.available()
        if reason is None:
            tell(f"{case.name}: {side.name} is profiled")
            try:
                profiles[side.name] = _median(_turns(case, side, folder, rounds))
                continue
            except DaifukuError as error:
                reason = f"failed: {error}"
        tell(f"{case.name}: {side.name} is left out: {reason}")
        skipped[side.name] = reason
    return {**circumstances(case), "profiles": profiles, "skipped": skipped, "seconds": perf_counter() - began}


def _ours(case: Case) -> list[Side]:
    return [side for side in case.sides if side.build is not None and side.name.startswith(OURS)]


def _turns(case: Case, side: Side, folder: Path, rounds: int) -> list[Profile]:
    with closing(open_process(side, folder)) as process:
        for _ in range(case.warm):
            process.sample()
        until = perf_counter() + case.limit_s
        turns = [process.profile()]
        while len(turns) < rounds and perf_counter() < until:
            turns.append(process.profile())
    return turns


def _median(turns: Sequence[Profile]) -> Record:
    middle = sorted(turns, key=lambda turn: turn.total_s)[(len(turns) - 1) // 2]
    return {"total_s": middle.total_s, **asdict(middle), "turns": len(turns)}
