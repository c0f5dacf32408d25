"""Runs of many processes on this machine, for tests: each process of a run, and how they are started."""

import multiprocessing
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from daifuku.train.config import TrainConfig, parse_config
from daifuku.train.parallel import joined
from daifuku.train.run import open_task, run_task


def start(work: Callable[..., None], num_processes: int, meeting: Path, *given: object) -> list[BaseProcess]:
    """Processes that have met, each with a call of work(rank, ...)."""
    # Forked from a server that has imported everything: a start costs no seconds.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, "peft"])
    arguments = [(work, rank, num_processes, str(meeting), given) for rank in range(num_processes)]
    processes = [context.Process(target=met, args=each, daemon=True) for each in arguments]
    for process in processes:
        process.start()
    return processes


def met(work: Callable[..., None], rank: int, num_processes: int, meeting: str, given: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    if num_processes > 1:
        dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=num_processes)
    work(rank, *given)
    if num_processes > 1:
        dist.destroy_process_group()


def train(rank: int, content: dict[str, Any]) -> None:
    """The whole run."""
    config: TrainConfig = parse_config(content)
    with joined(config) as ranks:
        for _ in run_task(open_task(config, ranks)):
            pass
