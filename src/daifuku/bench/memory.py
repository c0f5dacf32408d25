"""The most memory that a process ever held: of this one, and of a command."""

import json
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from daifuku.errors import DaifukuError

STATUS = Path("/proc/self/status")

LAUNCHER = """
import json, os, subprocess, sys, time
started = time.perf_counter()
process = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL)
_, status, usage = os.wait4(process.pid, 0)
print(json.dumps([time.perf_counter() - started, usage.ru_maxrss, os.waitstatus_to_exitcode(status)]))
"""
"""Starts a command and says what it took. The system counts what a process held before it became the command, so the
starter has to be a small process of its own."""


@dataclass(frozen=True, kw_only=True)
class Spent:
    """What a command took."""

    seconds: float
    peak_bytes: int


def peak_bytes() -> int:
    """The most resident memory of this process so far."""
    if STATUS.is_file():
        return _status_kib("VmHWM") * 2**10
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _maxrss_unit()


def resident_bytes() -> int:
    """What this process holds now; where the system does not tell, the most it ever held."""
    return _status_kib("VmRSS") * 2**10 if STATUS.is_file() else peak_bytes()


def run_command(command: Sequence[str], folder: Path) -> Spent:
    """Runs a command in a folder, from start to end. Raises DaifukuError with its last words when it fails."""
    launch = [sys.executable, "-S", "-E", "-c", LAUNCHER, *command]
    done = subprocess.run(launch, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise DaifukuError(f"{command[0]} does not start: {_last_line(done.stderr)}")
    seconds, maxrss, code = json.loads(done.stdout)
    if code != 0:
        raise DaifukuError(f"{' '.join(command)[:80]} ends with {code}: {_last_line(done.stderr)}")
    return Spent(seconds=seconds, peak_bytes=maxrss * _maxrss_unit())


def _maxrss_unit() -> int:
    """ru_maxrss counts bytes on macOS and KiB elsewhere."""
    return 1 if sys.platform == "darwin" else 2**10


def _status_kib(name: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+) kB", STATUS.read_text(), re.MULTILINE)
    return int(found[1]) if found else 0


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["no message"])[-1]
