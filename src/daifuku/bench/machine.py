"""Where a measurement was made: figures of different machines or versions are never mixed."""

import os
import platform
import re
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from daifuku.version import VERSION

PACKAGES = ("torch", "diffusers", "transformers", "safetensors", "numpy")


@dataclass(frozen=True, kw_only=True)
class MachineInfo:
    """What decides how fast anything is."""

    cpu: str
    cores: int
    memory_gib: int
    gpu: str | None
    threads: int
    """That PyTorch computes with."""

    @property
    def slug(self) -> str:
        """Names the file of its results, such as intel-xeon-processor-2-cores."""
        words = self.gpu or f"{self.cpu} {self.cores} cores"
        return re.sub(r"[^a-z0-9]+", "-", re.sub(r"\((r|tm)\)", "", words.lower())).strip("-")


def this_machine() -> MachineInfo:
    """The machine that this runs on."""
    return MachineInfo(
        cpu=_cpu_name(),
        cores=os.cpu_count() or 1,
        memory_gib=round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30),
        gpu=torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        threads=torch.get_num_threads(),
    )


def versions() -> dict[str, str]:
    """Of Python, this package, and whatever of the others is installed."""
    found = {"python": platform.python_version(), "daifuku": VERSION}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*:\s*(.+)$", cpuinfo.read_text(), re.MULTILINE) if cpuinfo.is_file() else None
    return found[1] if found else platform.processor() or platform.machine()
