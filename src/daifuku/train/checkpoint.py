"""Checkpoints of a run: one safetensors file, written whole or not at all."""

import os
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from daifuku.errors import TrainingError

Groups = dict[str, dict[str, Tensor]]


def save_checkpoint(path: Path, groups: Groups) -> None:
    """Writes named groups of tensors under a temporary name, syncs, and renames: a kill leaves the old file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".partial")
    tensors = {f"{group}/{name}": t.contiguous() for group, named in groups.items() for name, t in named.items()}
    save_file(tensors, temporary)
    with temporary.open("rb") as written:
        os.fsync(written.fileno())
    temporary.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def load_checkpoint(path: Path) -> Groups:
    """The groups that `save_checkpoint` wrote. Raises TrainingError when the file is damaged."""
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise TrainingError(f"{path} is damaged ({error}). Delete it to train from the start.") from error
    groups: Groups = {}
    for key, tensor in tensors.items():
        group, _, name = key.partition("/")
        groups.setdefault(group, {})[name] = tensor
    return groups
