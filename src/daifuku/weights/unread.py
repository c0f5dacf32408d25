"""A model whose weights are in files: built on the meta device, checked, and filled straight from them."""

import gc
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from daifuku.errors import CheckpointError
from daifuku.weights.encoded_linear import EncodedLinear
from daifuku.weights.names import NameTable, Naming, Part, name_table, of_part
from daifuku.weights.place import Place
from daifuku.weights.sizes import Shapes, UnknownSize
from daifuku.weights.tensors import TensorFiles, Wanted, raw

Model = TypeVar("Model", bound=nn.Module)

Each = Callable[[str, nn.Module], object]
"""What happens to a piece of a model, by its name, as soon as its weights are there."""

FLOAT32_ALWAYS = frozenset({"pos_frequencies"})
"""Tensors that stay float32 in every model and file: angles grow with the frame number, and half precision would turn
late frames by whole degrees."""

NUM_SHOWN = 3

IN_A_BLOCK = re.compile(r"(^|\.)blocks?\.\d+\.")
"""Names of the layers that repeat: nearly all weights are theirs."""

SENSITIVE = ".wo"
"""How the one layer of a T5 block is called that is never quantised: its inputs are far larger than all others."""


@dataclass(frozen=True, kw_only=True)
class AsStored:
    """How a file keeps weights in fewer bits."""

    words: str
    """What most of them are encoded as."""
    bits: float
    """For each weight, scales included."""


@dataclass(frozen=True, kw_only=True)
class Unread(Generic[Model]):
    """A part of a model whose weights are still in their files."""

    files: TensorFiles
    part: Part
    layout: Naming
    build: Callable[[Shapes], Model]
    """Makes the model from the shapes of its tensors, by our names."""
    dtype: torch.dtype
    device: torch.device

    def skeleton(self) -> Model:
        """The model on the meta device, without any weight.

        Raises CheckpointError naming the tensors that are missing, too many or of the wrong shape, as the file does.
        """
        try:
            with torch.device("meta"), _Uninitialised(), _no_garbage_collection():
                model = self.build(self.shapes)
        except UnknownSize as error:
            theirs = self._table.stored(error.tensor).names[0]
            raise CheckpointError(
                f"{self._where}: the tensor {theirs} {error.problem}, so the model's size is unknown"
            ) from error
        except ValueError as error:
            raise CheckpointError(f"{self._where}: these tensor shapes make no Mochi model: {error}") from error
        self._check(model)
        return model

    def read(self, *names: str) -> dict[str, Tensor]:
        """Some of the model's tensors, on its device and in its precision. They leave memory when they are dropped."""
        wanted = {
            name: Wanted(stored=self._table.stored(name), dtype=torch.float32 if name in FLOAT32_ALWAYS else self.dtype)
            for name in names
        }
        return self.files.read(wanted, self.device)

    def load(
        self, *, without: Callable[[str], bool] | None = None, each: Each | None = None, encoded: bool = False
    ) -> Model:
        """The model with its weights, in evaluation mode.

        With `encoded` the linear layers inside its blocks that the files hold in fewer bits become `EncodedLinear`s,
        which keep them so. That decodes to the same numbers, in less memory and more time.
        Tensors that `without` picks by name stay on the meta device. With `each` the weights come piece by piece, every
        block a piece of its own, and the next is read when `each` has returned: what it does to a piece, such as
        quantising it or sending it elsewhere, then never needs memory for more than one piece. Raises CheckpointError.
        """
        model = self.skeleton()
        places = self._keep_encoded(model) if encoded else {}
        names = [name for name in model.state_dict() if without is None or not without(name)]
        for piece, inside in {"": names}.items() if each is None else _pieces(model, names).items():
            plain = [name for name in inside if name not in places]
            as_stored = raw({name: places[name] for name in inside if name in places}, self.device)
            named = (self.read(*plain) | as_stored).items()
            tensors = {name.removeprefix(f"{piece}."): tensor for name, tensor in named}
            del named, as_stored
            module = model.get_submodule(piece)
            module.load_state_dict(tensors, assign=True, strict=False)
            if each is not None and piece:
                del tensors
                each(piece, module)
        return model.eval()

    def _keep_encoded(self, model: nn.Module) -> dict[str, Place]:
        """Puts in layers that keep their weights as they are stored; the new tensors, and where the files have them.

        The last layer of a T5 block is asked for its weight's precision, so it stays as it is.
        """
        places: dict[str, Place] = {}
        for name, layer in list(model.named_modules()):
            if not isinstance(layer, nn.Linear) or not is_large(name):
                continue
            stored = self._table.stored(f"{name}.weight")
            parts = [self.files.tensors[each] for each in stored.names]
            if all(part.compact for part in parts):
                with torch.device("meta"):
                    linear = EncodedLinear(layer, parts, swapped=stored.swapped)
                model.set_submodule(name, linear)
                places |= {f"{name}.{own}": place for own, place in linear.places.items()}
        return places

    @property
    def stored(self) -> "AsStored | None":
        """How the weights are encoded that can be kept so; None where there are none."""
        tensors = [self.files.tensors[name] for name in self._names]
        kept = [tensor for tensor in tensors if tensor.compact]
        if not kept:
            return None
        counts = Counter[str]()
        for tensor in kept:
            counts[tensor.words] += prod(tensor.shape)
        bits = 8 * sum(tensor.num_bytes for tensor in kept) / max(counts.total(), 1)
        return AsStored(words=counts.most_common(1)[0][0], bits=bits)

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the model's tensors, by our names, as far as the files have them."""
        shapes: dict[str, tuple[int, ...]] = {}
        for name in self._names:
            ours, shape = self._table.ours(name), self.files.shapes[name]
            if ours is not None and shape:
                rows, *rest = shape
                shapes[ours] = (rows * len(self._table.stored(ours).names), *rest)
        return shapes

    @cached_property
    def _names(self) -> list[str]:
        return of_part(self.files.shapes, self.part, self.layout)

    @cached_property
    def _table(self) -> NameTable:
        return name_table(self.part, self.layout, self._names)

    @property
    def _where(self) -> str:
        return self.files.where

    def _check(self, model: nn.Module) -> None:
        """Raises CheckpointError unless the files hold exactly the model's tensors; in the file's own names."""
        expected: dict[str, list[int]] = {}
        for name, tensor in model.state_dict().items():
            stored = self._table.stored(name).names
            expected |= {key: [tensor.shape[0] // len(stored), *tensor.shape[1:]] for key in stored}
        names, shapes = set(self._names), self.files.shapes
        missing = [name for name in expected if name not in names]
        extra = sorted(names - expected.keys())
        misshapen = [
            f"{name} is {list(shapes[name])} instead of {shape}"
            for name, shape in expected.items()
            if name in names and list(shapes[name]) != shape
        ]
        problems = [
            f"{len(found)} {what}: {', '.join(found[:NUM_SHOWN])}{', ...' if len(found) > NUM_SHOWN else ''}"
            for what, found in (("missing", missing), ("unknown", extra), ("of the wrong shape", misshapen))
            if found
        ]
        if problems:
            raise CheckpointError(f"{self._where} does not fit the model. Tensors {'; '.join(problems)}")


def is_large(name: str) -> bool:
    """Whether a linear layer of that name is kept in fewer bits where a network is quantised."""
    return IN_A_BLOCK.search(name) is not None and not name.endswith(SENSITIVE)


class _Uninitialised(TorchFunctionMode):
    """Layers that are built inside get no initial values, which would take longer than everything else and be lost."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__module__", None) == nn.init.__name__:
            return kwargs["tensor"]
        return func(*args, **(kwargs or {}))


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Thousands of small objects that all stay would make Python look through everything that it holds, for nothing."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _pieces(model: nn.Module, names: Iterable[str]) -> dict[str, list[str]]:
    """Tensors by the piece that they belong to: a child, an entry of a list of modules, or "" for the model's own."""
    pieces: dict[str, list[str]] = {}
    for name in names:
        *path, _ = name.split(".")
        depth = 2 if path and isinstance(model.get_submodule(path[0]), nn.ModuleList) else 1
        pieces.setdefault(".".join(path[:depth]), []).append(name)
    return pieces
