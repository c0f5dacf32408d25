"""Checkpoints of a run: a folder each, which appears whole or not at all, and is checked before it is used.

RUN/checkpoints/000000200 holds one safetensors file for each group of tensors, and manifest.json with their hashes,
which is written last. What an older version wrote, one file RUN/checkpoint.safetensors, is still read.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from uuid import uuid4

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from daifuku.errors import TrainingError

FORMAT = 2
HOME, MANIFEST, OLD_FILE = "checkpoints", "manifest.json", "checkpoint.safetensors"
ASIDE = "damaged-"
"""How the name of a checkpoint begins that did not pass its check."""

Groups = dict[str, dict[str, Tensor]]
Say = Callable[[str], object]


@dataclass(frozen=True, kw_only=True, eq=False)
class Checkpoint:
    """Everything a run needs to go on."""

    path: Path
    step: int
    groups: Groups
    conditions: Mapping[str, str] = field(default_factory=dict)
    """What has to be the same for the run to go on bit for bit; empty where nobody wrote it down."""


def save_checkpoint(
    folder: Path, step: int, groups: Groups, *, conditions: Mapping[str, str] | None = None, keep: int = 2
) -> Path:
    """Writes named groups of tensors, and lets go of all but the `keep` newest checkpoints.

    Whenever it is killed, those that were there before are still whole. Raises TrainingError where the disk is full or
    cannot be written.
    """
    home = folder / HOME
    target = home / f"{step:09}"
    draft = home / f".{step:09}.{uuid4().hex}"
    try:
        home.mkdir(parents=True, exist_ok=True)
        for left in home.glob(".*"):
            shutil.rmtree(left)
        draft.mkdir()
        _write(draft, step, groups, conditions or {})
        if target.exists():
            target.rename(home / f".old.{uuid4().hex}")
        draft.rename(target)
        _sync(home)
        for older in _steps(home)[keep:]:
            shutil.rmtree(older)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(draft, ignore_errors=True)
        raise TrainingError(
            f"step {step} cannot be saved in {home}: {error}. The checkpoints before it are whole."
        ) from (error)
    return target


def newest_checkpoint(folder: Path, say: Say = lambda _: None) -> Checkpoint | None:
    """The newest checkpoint that passes its check; damaged ones are set aside and told about. None where there is none.

    Raises TrainingError where there are checkpoints and all are damaged.
    """
    home = folder / HOME
    found = _steps(home)
    for path in found:
        try:
            return _read(path)
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            aside = home / f"{ASIDE}{path.name}.{uuid4().hex[:8]}"
            path.rename(aside)
            say(f"{path} is damaged ({error}); it lies in {aside.name} now, and the one before it is tried")
    old = folder / OLD_FILE
    if old.exists():
        return _read_old(old)
    if found or list(home.glob(f"{ASIDE}*")):
        raise TrainingError(f"every checkpoint in {home} is damaged. Delete {home} to train from the start.")
    return None


def _steps(home: Path) -> list[Path]:
    """Folders of checkpoints, newest first."""
    return sorted(
        (path for path in home.glob("[0-9]*") if path.name.isdigit()), key=lambda p: int(p.name), reverse=True
    )


def _write(draft: Path, step: int, groups: Groups, conditions: Mapping[str, str]) -> None:
    files: dict[str, str] = {}
    for group, tensors in groups.items():
        path = draft / f"{group}.safetensors"
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
        _sync(path)
        files[path.name] = _hash(path)
    content = {"format": FORMAT, "step": step, "files": files, "conditions": dict(conditions)}
    path = draft / MANIFEST
    path.write_text(json.dumps(content, indent=2) + "\n", "utf-8")
    _sync(path)
    _sync(draft)


def _read(path: Path) -> Checkpoint:
    """Raises ValueError and what reading raises, for whatever is not as it was written."""
    content = json.loads((path / MANIFEST).read_text("utf-8"))
    if content["format"] != FORMAT or content["step"] != int(path.name):
        raise ValueError(f"its manifest is of format {content['format']} and step {content['step']}")
    for name, expected in content["files"].items():
        if _hash(path / name) != expected:
            raise ValueError(f"{name} is not what was written")
    groups = {name.removesuffix(".safetensors"): load_file(path / name) for name in content["files"]}
    return Checkpoint(path=path, step=content["step"], groups=groups, conditions=content["conditions"])


def _read_old(path: Path) -> Checkpoint:
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise TrainingError(f"{path} is damaged ({error}). Delete it to train from the start.") from error
    groups: Groups = {}
    for key, tensor in tensors.items():
        group, _, name = key.partition("/")
        groups.setdefault(group, {})[name] = tensor
    step = int(groups.pop("loop")["step"])
    return Checkpoint(path=path, step=step, groups=groups)


def _hash(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
