"""Which of several ways is the fastest on this machine: measured once, then remembered in a file."""

import json
import platform
from collections.abc import Callable, Mapping
from contextlib import suppress
from math import inf
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from daifuku.errors import UnwritableOutput
from daifuku.weights.files import write_json

MEMORY_FILE = "measured.json"
"""Where the cache folder keeps what was measured."""

NUM_ROUNDS = 3

Ways = Mapping[str, Callable[[], Tensor]]
"""Things to measure, by name; each gives some tensor of the device."""


def fastest_way(ways: Ways, device: torch.device, subject: str, folder: Path) -> str | None:
    """The name of the fastest; None where none of them runs.

    `subject` tells everything about the ways that their times depend on, beside the machine. They are measured when
    `folder` does not know them yet, or knew another choice of them, such as before an installation.
    """
    path, key = folder / MEMORY_FILE, f"{_machine(device)}, {subject}"
    memory = _remembered(path)
    seconds = memory.get(key)
    if not isinstance(seconds, dict) or seconds.keys() != ways.keys():
        seconds = _measured(ways)
        # A folder that cannot be written means to measure again next time, and no more.
        with suppress(UnwritableOutput):
            write_json(path, memory | {key: seconds})
    ran = {name: value for name, value in seconds.items() if isinstance(value, float)}
    return min(ran, key=ran.__getitem__) if ran else None


def _measured(ways: Ways) -> dict[str, float | None]:
    """Seconds of each, the best of a few interleaved rounds; None for one that fails when it is tried."""
    seconds: dict[str, float | None] = dict.fromkeys(ways, inf)
    # The first round only warms up.
    for round_number in range(1 + NUM_ROUNDS):
        for name, run in ways.items():
            best = seconds[name]
            if best is None:
                continue
            try:
                taken = _seconds(run)
            except RuntimeError:
                seconds[name] = None
                continue
            if round_number > 0:
                seconds[name] = min(best, taken)
    return seconds


@torch.inference_mode()
def _seconds(run: Callable[[], Tensor]) -> float:
    started = perf_counter()
    run().flatten()[0].item()  # waits for the device
    return perf_counter() - started


def _machine(device: torch.device) -> str:
    cuda = device.type == "cuda"
    name = torch.cuda.get_device_name(device) if cuda else platform.processor() or platform.machine()
    return f"{platform.node()}, {name}, {torch.get_num_threads()} threads, torch {torch.__version__}"


def _remembered(path: Path) -> dict[str, Any]:
    """What was measured before; nothing where the file is missing or damaged."""
    try:
        memory = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return memory if isinstance(memory, dict) else {}
