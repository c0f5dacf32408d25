"""What the machine has: free memory, and how fast it multiplies."""

import ctypes
import gc
import re
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from time import perf_counter

import torch

from daifuku.errors import InvalidRequest

UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?", re.IGNORECASE)

AT_WORK_BYTES = 48 * 2**20
"""Host memory that the libraries take when a run begins to compute: their kernels, buffers and threads (measured)."""

RATE_SIDE = {"cpu": 1024, "cuda": 8192, "mps": 2048}
"""Side of the square matrices whose product tells a device's speed."""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """A device and the host it belongs to. Where the device is the host, both share one memory."""

    device: torch.device
    free_bytes: int
    """Memory of the device that a run may use, what this process holds there already included."""
    host_free_bytes: int

    @property
    def is_host(self) -> bool:
        return self.device.type == "cpu"


def this_machine(device: torch.device, limit_bytes: int | None = None) -> Machine:
    """The device as it is now. `limit_bytes` stands for the device's memory, for plans about smaller ones."""
    host = host_free_bytes()
    if limit_bytes is not None:
        return Machine(device=device, free_bytes=limit_bytes, host_free_bytes=host)
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
    elif device.type == "mps":
        free = torch.mps.recommended_max_memory()
    else:
        free = host + resident_bytes()
    return Machine(device=device, free_bytes=free, host_free_bytes=host)


def resident_bytes() -> int:
    """Host memory that this process holds at the moment; 0 where the system does not tell."""
    return _proc_kib(Path("/proc/self/status"), "VmRSS") * 2**10


def base_bytes(device: torch.device) -> int:
    """Memory of the device that a run takes before any network is read: libraries on a host, nothing on a GPU."""
    return resident_bytes() + AT_WORK_BYTES if device.type == "cpu" else 0


@cache
def multiply_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations per second of a large matrix product: the best of a few short ones."""
    side = RATE_SIDE.get(device.type, 2048)
    left, right = torch.randn(2, side, side, device=device).to(dtype)
    best = float("inf")
    for _ in range(4):
        started = perf_counter()
        product = left @ right
        _ = product[0, 0].item()  # waits for the device
        best = min(best, perf_counter() - started)
    return 2 * side**3 / best


def cache_folder() -> Path:
    """Where this user's machine keeps what was measured or learnt once."""
    return Path.home() / ".cache" / "daifuku"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception means that memory ran out, on a GPU or on the host."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "not enough memory" in str(error)


def trim_heap() -> None:
    """Gives what is free between the blocks of the heap back to the system, where its C library can do that (glibc)."""
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:
        trim(0)


def free_caches() -> None:
    """Gives back what nothing refers to any more."""
    gc.collect()
    trim_heap()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def parse_size(text: str) -> int:
    """Bytes of "12GiB", "800 MB" or "12G"; units are powers of 1024. Raises InvalidRequest."""
    found = _SIZE.fullmatch(text.strip())
    if found is None or float(found[1]) == 0:
        raise InvalidRequest(f"{text!r} is no amount of memory. Try 12GiB.")
    return int(float(found[1]) * UNITS[found[2].upper()])


def host_free_bytes() -> int:
    """What can be had without swapping, within the limit of a container."""
    available = _proc_kib(Path("/proc/meminfo"), "MemAvailable") * 2**10
    if not available:
        # Other systems: half of all memory is a careful guess.
        available = _total_host_bytes() // 2
    limit, used = (_number(Path("/sys/fs/cgroup") / name) for name in ("memory.max", "memory.current"))
    if limit is not None and used is not None:
        reclaimable = _reclaimable_bytes(Path("/sys/fs/cgroup/memory.stat"))
        available = min(available, max(limit - used + reclaimable, 0))
    return available


def _total_host_bytes() -> int:
    import os

    names = getattr(os, "sysconf_names", {})
    if "SC_PHYS_PAGES" not in names:
        return 8 * UNITS["G"]
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _proc_kib(path: Path, name: str) -> int:
    """A line such as `VmRSS:  1234 kB`; 0 where there is none."""
    if not path.is_file():
        return 0
    found = re.search(rf"^{name}:\s+(\d+) kB", path.read_text(), re.MULTILINE)
    return int(found[1]) if found else 0


def _number(path: Path) -> int | None:
    text = path.read_text().strip() if path.is_file() else ""
    return int(text) if text.isdigit() else None


def _reclaimable_bytes(path: Path) -> int:
    """File pages that the kernel gives back before anything fails."""
    if not path.is_file():
        return 0
    found = re.search(r"^inactive_file (\d+)", path.read_text(), re.MULTILINE)
    return int(found[1]) if found else 0
