"""Weights from files into a model, every byte of them read."""

from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import Tensor

from daifuku.bench.case import Action
from daifuku.bench.models import peer, their_dit
from daifuku.weights.load import as_dtype, load_dit

PAGE_BYTES = 4096


def ours(folder: Path, *, dtype: str, device: str = "cpu") -> Action:
    """A transformer."""
    return _reading(lambda: load_dit(folder, dtype=dtype, device=device).parameters())


def safetensors(folder: Path, *, dtype: str, device: str = "cpu") -> Action:
    """A dictionary of tensors by the library that both sides build on; there is no model yet."""
    from safetensors.torch import load_file

    files = sorted([*folder.glob("dit.safetensors"), *folder.glob("transformer/*.safetensors")])
    precision = as_dtype(dtype)
    return _reading(lambda: (tensor.to(precision) for path in files for tensor in load_file(path, device).values()))


def diffusers(folder: Path, *, dtype: str, device: str = "cpu") -> Action:
    """A transformer."""
    _ = peer().MochiTransformer3DModel  # imported now, since that is not loading
    return _reading(lambda: their_dit(folder, as_dtype(dtype), device).parameters())


def _reading(load: Callable[[], Iterable[Tensor]]) -> Action:
    def run() -> None:
        tensors = list(load())
        for tensor in tensors:
            # A file may be mapped rather than read: touching a page brings it in.
            tensor.detach().flatten().view(torch.uint8)[::PAGE_BYTES].max()

    return Action(run=run)
