"""Processes on this machine that have met, for tests of what many compute together."""

import multiprocessing
from collections.abc import Callable, Sequence
from datetime import timedelta
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

PATIENCE = timedelta(seconds=60)


def start(work: Callable[..., None], num_processes: int, meeting: Path, *given: object) -> Sequence[BaseProcess]:
    """Each makes a call of work(rank, ...). One alone meets nobody."""
    # Forked from a server that has imported everything: a start costs no seconds.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.unit.train.many_runs", "peft"])
    meeting.unlink(missing_ok=True)
    arguments = [(work, rank, num_processes, str(meeting), given) for rank in range(num_processes)]
    processes = [context.Process(target=_meet, args=each, daemon=True) for each in arguments]
    for process in processes:
        process.start()
    return processes


def finish(processes: Sequence[BaseProcess]) -> list[int | None]:
    """How each ended."""
    for process in processes:
        process.join(240)
    return [process.exitcode for process in processes]


def _meet(work: Callable[..., None], rank: int, num_processes: int, meeting: str, given: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    if num_processes > 1:
        dist.init_process_group(
            "gloo", init_method=f"file://{meeting}", rank=rank, world_size=num_processes, timeout=PATIENCE
        )
    work(rank, *given)
    if num_processes > 1:
        dist.destroy_process_group()
