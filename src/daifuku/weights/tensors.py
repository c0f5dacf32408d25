"""Reads safetensors files: names and shapes at once, tensors one at a time through memory maps."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from daifuku.errors import CheckpointError, ModelNotFound
from daifuku.weights.names import Stored, to_ours


class TensorFiles:
    """The tensors of one or more files, by name.

    Raises ModelNotFound for a file that is not there and CheckpointError for one that is damaged.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = tuple(paths)
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._file_of: dict[str, Any] = {}
        self._path_of: dict[str, Path] = {}
        for path in paths:
            file = _open(path)
            names: list[str] = file.keys()
            for name in names:
                if name in self.shapes:
                    raise CheckpointError(f"{path} holds the tensor {name} again, which {self._path_of[name]} holds")
                self.shapes[name] = tuple(file.get_slice(name).get_shape())
                self._file_of[name] = file
                self._path_of[name] = path

    def tensor(self, stored: Stored, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Our tensor on the device. Where the file has it exactly so, it is a view of the file, without any copy."""
        if stored.as_it_is and device.type == "cpu":
            view = _read(self._path_of[stored.names[0]], self._file_of[stored.names[0]].get_tensor, stored.names[0])
            if view.dtype == dtype:
                return view
        rows = sum(self.shapes[name][0] for name in stored.names)
        whole = torch.empty((rows, *self.shapes[stored.names[0]][1:]), dtype=dtype, device=device)
        row = 0
        for name in stored.names:
            for piece in to_ours(stored, [self._copied(name)]):
                whole[row : row + len(piece)].copy_(piece)
                row += len(piece)
        return whole

    def _copied(self, name: str) -> Tensor:
        """A view through a map of its own: its pages leave memory as soon as the view is gone."""
        path = self._path_of[name]
        tensor = _read(path, _open(path).get_tensor, name)
        if not tensor.is_floating_point():
            raise CheckpointError(f"{path}: the tensor {name} is {tensor.dtype}; only floating-point weights load")
        return tensor


def _open(path: Path) -> Any:
    if not path.is_file():
        raise ModelNotFound(f"there is no file {path}")
    return _read(path, safe_open, path, "pt")


def _read(path: Path, action: Callable[..., Any], *arguments: object) -> Any:
    """Runs an action on a file and says which file it was when that fails."""
    try:
        return action(*arguments)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is damaged or cut short ({error}); download or copy it again") from error
