"""daifuku doctor: what this machine can do, and why not."""

import json
import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from importlib import import_module
from importlib.metadata import version
from itertools import groupby
from pathlib import Path

import typer

from daifuku.cli.console import say
from daifuku.cli.flags import Json
from daifuku.errors import DaifukuError
from daifuku.request import SOLVERS
from daifuku.version import VERSION

LIBRARIES = ("torch", "transformers", "tokenizers", "safetensors", "huggingface_hub", "av", "numpy")
PUBLISHED = ("genmo/mochi-1-preview",)
BFLOAT16_UNITS = ("amx_bf16", "avx512_bf16", "avx_ne_convert", "bf16")
GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that was looked at."""

    section: str
    name: str
    value: str = ""
    problem: str | None = None
    """Why it does not work; None where it does."""
    needed: bool = False
    """Whether nothing can be generated without it."""


def doctor(as_json: Json = False) -> None:
    """Show what this machine can do, and why not. Exits with 1 if it cannot generate at all."""
    findings = [*look_at_machine(), *look_at_libraries()]
    if _ready(findings):
        findings += [finding for look in WITH_LIBRARIES for finding in look()]
    ready = _ready(findings)
    if as_json:
        print(json.dumps({"ready": ready, "findings": [asdict(finding) for finding in findings]}, indent=2))
    else:
        print(_page(findings))
    if not ready:
        say("error: this machine cannot generate a video yet; what is marked with ✗ and needed says why")
        raise typer.Exit(1)


def look_at_machine() -> Iterator[Finding]:
    """System, processor, memory and disk."""
    wanted = (3, 11) <= sys.version_info[:2] <= (3, 13)
    wrong_python = None if wanted else "daifuku is made for Python 3.11 to 3.13"
    yield Finding(section="machine", name="daifuku", value=VERSION)
    yield Finding(section="machine", name="python", value=platform.python_version(), problem=wrong_python)
    yield Finding(section="machine", name="system", value=platform.platform())
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        yield Finding(section="machine", name="memory", value=_gib(memory))
    yield Finding(section="machine", name="free disk here", value=_gib(shutil.disk_usage(".").free))


def look_at_libraries() -> Iterator[Finding]:
    """Which versions are installed, and whether they can be imported."""
    for name in LIBRARIES:
        finding = Finding(section="libraries", name=name, needed=True)
        try:
            import_module(name)
            yield replace(finding, value=version(name))
        except (ImportError, OSError) as error:
            yield replace(finding, problem=f"cannot be imported: {error}")


def look_at_devices() -> Iterator[Finding]:
    """Where networks can run, and in which precision."""
    import torch

    capable = getattr(torch.cpu, "get_capabilities", dict)()
    units = [name for name in BFLOAT16_UNITS if capable.get(name)]
    value = (
        f"{capable.get('cpu_name') or platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"
    )
    yield Finding(section="devices", name="cpu", value=value)
    yield Finding(
        section="devices",
        name="bfloat16 on the cpu",
        value=f"in hardware: {', '.join(units)}" if units else "",
        problem=None if units else "no unit for it was found: it works, but slower than float32",
    )
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            about = torch.cuda.get_device_properties(index)
            bfloat16 = "bfloat16" if about.major >= 8 else "no bfloat16 in hardware"
            value = f"{about.name}, {_gib(about.total_memory)}, {bfloat16}"
            yield Finding(section="devices", name=f"cuda:{index}", value=value)
    else:
        built = torch.version.cuda or torch.version.hip
        reason = "no GPU or no driver was found" if built else "this build of torch is for the CPU only"
        yield Finding(section="devices", name="cuda", problem=reason)
    if sys.platform == "darwin":
        found = torch.backends.mps.is_available()
        yield Finding(section="devices", name="mps", problem=None if found else "torch finds no Metal device")


def look_at_files() -> Iterator[Finding]:
    """Which kinds of clip can be written."""
    from daifuku.media.formats import FORMATS

    for name, form in FORMATS.items():
        yield Finding(section="files", name=name, value=form.help, problem=form.available(), needed=name == ".mp4")


def look_at_solvers() -> Iterator[Finding]:
    """Every solver that a request may name."""
    from daifuku.registry import load_all
    from daifuku.sample.solver import Solver

    for name, solver in load_all(SOLVERS, Solver).items():
        yield Finding(section="solvers", name=name, value=solver.help, problem=solver.available())


def look_at_models() -> Iterator[Finding]:
    """The built-in model, read as a whole, and the cache of downloaded ones."""
    import torch
    from huggingface_hub import constants

    from daifuku.config import RuntimeConfig
    from daifuku.runtime.build import BUILT_IN, BUILT_IN_FOLDER, load_parts
    from daifuku.weights.hub import download_command
    from daifuku.weights.load import HALVES

    finding = Finding(section="models", name=BUILT_IN, needed=True)
    try:
        parts = load_parts(BUILT_IN, device="cpu")
        run, cpu = RuntimeConfig(), torch.device("cpu")
        halves = (parts.vae(run, cpu, half) for half in HALVES)
        networks = parts.text(run, cpu).t5, parts.dit(run, cpu), *halves
        tensors = [tensor for network in networks for tensor in network.state_dict().values()]
        damaged = not all(tensor.isfinite().all() for tensor in tensors)
        count = sum(tensor.numel() for tensor in tensors)
        yield replace(
            finding,
            value=f"{count:,} parameters, identity {parts.info.identity}, in {BUILT_IN_FOLDER}",
            problem="some weights are NaN or infinite" if damaged else None,
        )
    except DaifukuError as error:
        yield replace(finding, problem=str(error))
    cache = Path(constants.HF_HUB_CACHE)
    offline = ", offline: nothing is downloaded" if constants.HF_HUB_OFFLINE else ""
    yield Finding(section="models", name="hub cache", value=f"{cache}{offline}")
    for model in PUBLISHED:
        there = (cache / f"models--{model.replace('/', '--')}").is_dir()
        reason = None if there else f"not downloaded; where there is a network: {download_command(model, None)}"
        yield Finding(section="models", name=model, value="in the cache" if there else "", problem=reason)


def _ready(findings: list[Finding]) -> bool:
    return not any(finding.needed and finding.problem for finding in findings)


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / GIB:.1f} GiB"


def _page(findings: list[Finding]) -> str:
    """The findings for a person to read."""
    lines: list[str] = []
    for section, group in groupby(findings, key=lambda finding: finding.section):
        lines += ["", section]
        for finding in group:
            text = ": ".join(filter(None, [finding.value, finding.problem]))
            needed = " (needed)" if finding.problem and finding.needed else ""
            lines.append(f"  {'✗' if finding.problem else '✓'} {finding.name:<22} {text}{needed}")
    return "\n".join(lines[1:])


WITH_LIBRARIES: tuple[Callable[[], Iterator[Finding]], ...] = (
    look_at_devices,
    look_at_files,
    look_at_solvers,
    look_at_models,
)
"""Looks that need the libraries to be there."""

COMMAND = doctor
