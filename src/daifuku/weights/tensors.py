"""Reads weights from files: as views of the file where it holds them just so, else by several threads into place."""

import copy
import mmap
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from io import FileIO
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from daifuku.errors import CheckpointError
from daifuku.weights.encodings import FLOATS, Encoded, grouped, raw_dtype, raw_shape
from daifuku.weights.files import places
from daifuku.weights.names import Stored
from daifuku.weights.place import Place, damaged

PIECE_BYTES = 4 * 2**20
"""What a thread reads at a time: long enough to keep a disk busy, short enough to stay in the processor's cache."""

MAX_THREADS = 8

MAP_BYTES = 128 * 2**20
"""At least so much of a file is one map: maps are few then, and no tensor keeps much more than itself in memory."""

MAX_MAPS = 64

HUGE_PAGE_BYTES = 2 * 2**20


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """A tensor of ours: where the files have it, and the precision that it gets."""

    stored: Stored
    dtype: torch.dtype


@dataclass(frozen=True, kw_only=True)
class _Piece:
    """Bytes of a file, and the flat part of a tensor that they fill."""

    path: Path
    start: int
    dtype: torch.dtype
    target: Tensor


class TensorFiles:
    """The weights of one or more files, by name, whatever they are encoded as.

    Raises ModelNotFound for a file that is not there and CheckpointError for one that is damaged.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = tuple(paths)
        found: dict[str, Place] = {}
        for path in paths:
            for name, place in places(path).items():
                if name in found:
                    raise CheckpointError(f"{path} holds the tensor {name} again, which {found[name].path} holds")
                found[name] = place
        self.where = ", ".join(map(str, self.paths))
        self._take(grouped(found))

    def _take(self, tensors: dict[str, Encoded]) -> None:
        self.tensors = tensors
        self.shapes = {name: tensor.shape for name, tensor in tensors.items()}

    def renamed(self, names: Mapping[str, str], where: str) -> "TensorFiles":
        """Some of the weights under new names (new: old); `where` says in errors which they are."""
        some = copy.copy(self)
        some.where = where
        some._take({new: self.tensors[old] for new, old in names.items()})
        return some

    def read(self, wanted: Mapping[str, Wanted], device: torch.device) -> dict[str, Tensor]:
        """Tensors of ours on the device.

        On a CPU a tensor that the file has exactly so is a view of the file: it takes no time, and no memory before it
        is used. All others are read by several threads into their place, or decoded one after the other. Changing a
        tensor never changes a file.
        """
        # Whatever mode the caller computes in, weights are ordinary tensors.
        with torch.inference_mode(False):
            if device.type == "meta":
                return {name: _empty(self._shape(each), each.dtype, device) for name, each in wanted.items()}
            views = {
                name: place for name, each in wanted.items() if (place := self._as_it_is(each, device)) is not None
            }
            found = _mapped(views)
            rest = {name: each for name, each in wanted.items() if name not in views}
            found |= {name: _empty(self._shape(each), each.dtype, device) for name, each in rest.items()}
            _fill([piece for name, each in rest.items() for piece in self._pieces(each, found[name])], device)
            for name, each in rest.items():
                if any(self.tensors[part].decode is not None for part in each.stored.names):
                    self._decode(each, found[name])
        return {name: found[name] for name in wanted}

    def _shape(self, wanted: Wanted) -> tuple[int, ...]:
        first, *others = (self.shapes[name] for name in wanted.stored.names)
        return (first[0] + sum(other[0] for other in others), *first[1:]) if others else first

    def _as_it_is(self, wanted: Wanted, device: torch.device) -> Place | None:
        """The place of a tensor that a view of the file can stand for."""
        name = wanted.stored.names[0]
        tensor = self.tensors[name]
        if device.type != "cpu" or not wanted.stored.as_it_is or tensor.decode is not None:
            return None
        place = tensor.places["weight"]
        return place if _dtype_of(name, place) == wanted.dtype and _can_be_mapped(place, wanted.dtype) else None

    def _parts(self, wanted: Wanted, tensor: Tensor) -> Iterator[tuple[str, list[tuple[int, Tensor]]]]:
        """Every name that a tensor is read from, with numbers to begin at there and the flat parts that they fill."""
        flat, filled = tensor.flatten(), 0
        for name in wanted.stored.names:
            count = prod(self.shapes[name])
            part = flat[filled : filled + count] if count < flat.numel() else flat
            half = count // 2
            yield name, [(half, part[:half]), (0, part[half:])] if wanted.stored.swapped else [(0, part)]
            filled += count

    def _pieces(self, wanted: Wanted, tensor: Tensor) -> Iterator[_Piece]:
        """Everything that has to be read for a tensor, in pieces of at most PIECE_BYTES."""
        for name, parts in self._parts(wanted, tensor):
            if self.tensors[name].decode is None:
                place = self.tensors[name].places["weight"]
                dtype = _dtype_of(name, place)
                for begin, part in parts:
                    yield from _pieces(place, dtype, begin, part)

    def _decode(self, wanted: Wanted, tensor: Tensor) -> None:
        """Fills what is not plain numbers in the files."""
        for name, parts in self._parts(wanted, tensor):
            encoded = self.tensors[name]
            if encoded.decode is not None:
                weight = encoded.decoded(raw(encoded.places, tensor.device), wanted.dtype).flatten()
                for begin, part in parts:
                    part.copy_(weight[begin : begin + part.numel()])


def raw(wanted: Mapping[str, Place], device: torch.device) -> dict[str, Tensor]:
    """Tensors just as the files have them, on the device; on a CPU as views of the files where that is possible."""
    with torch.inference_mode(False):
        views = {
            name: place
            for name, place in wanted.items()
            if device.type == "cpu" and _can_be_mapped(place, raw_dtype(place))
        }
        found = _mapped(views)
        rest = {name: place for name, place in wanted.items() if name not in views}
        found |= {name: _empty(raw_shape(place), raw_dtype(place), device) for name, place in rest.items()}
        if device.type != "meta":
            pieces = [_pieces(place, raw_dtype(place), 0, found[name].flatten()) for name, place in rest.items()]
            _fill([piece for some in pieces for piece in some], device)
    return {name: found[name] for name in wanted}


def _pieces(place: Place, dtype: torch.dtype, begin: int, target: Tensor) -> Iterator[_Piece]:
    """What has to be read for a flat part of a tensor, from a number of it on."""
    start = place.start + begin * dtype.itemsize
    if target.numel() * dtype.itemsize <= PIECE_BYTES:
        yield from [_Piece(path=place.path, start=start, dtype=dtype, target=target)] if target.numel() else ()
        return
    for piece in target.split(PIECE_BYTES // dtype.itemsize):
        yield _Piece(path=place.path, start=start, dtype=dtype, target=piece)
        start += piece.numel() * dtype.itemsize


def _can_be_mapped(place: Place, dtype: torch.dtype) -> bool:
    return place.num_bytes > 0 and place.start % dtype.itemsize == 0


def _dtype_of(name: str, place: Place) -> torch.dtype:
    if place.dtype not in FLOATS:
        raise CheckpointError(f"{place.path}: the tensor {name} is {place.dtype}; only floating-point weights load")
    return FLOATS[place.dtype]


def _empty(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Memory for a tensor; on a CPU in huge pages where the system has them, which are quicker to get and to use."""
    num_bytes = torch.Size(shape).numel() * dtype.itemsize
    if device.type != "cpu" or num_bytes < 2 * HUGE_PAGE_BYTES or not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.empty(shape, dtype=dtype, device=device)
    memory = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=dtype).view(shape)


def _mapped(views: Mapping[str, Place]) -> dict[str, Tensor]:
    """Views of files. A map leaves memory as soon as none of its tensors is left."""
    span = max(MAP_BYTES, sum(place.num_bytes for place in views.values()) // MAX_MAPS)
    found: dict[str, Tensor] = {}
    for group in _neighbours(views, span):
        places = [views[name] for name in group]
        first = places[0].start - places[0].start % mmap.ALLOCATIONGRANULARITY
        length = places[-1].start + places[-1].num_bytes - first
        try:
            with open(places[0].path, "rb") as file:
                memory = mmap.mmap(file.fileno(), length, access=mmap.ACCESS_COPY, offset=first)
        except (OSError, ValueError) as error:
            raise damaged(places[0].path, error) from error
        for name, place in zip(group, places, strict=True):
            dtype, offset = raw_dtype(place), place.start - first
            flat = torch.frombuffer(memory, dtype=dtype, count=place.num_bytes // dtype.itemsize, offset=offset)
            found[name] = flat.view(raw_shape(place))
    return found


def _neighbours(views: Mapping[str, Place], span: int) -> Iterator[list[str]]:
    """Names of tensors that lie within `span` bytes of one file, in its order."""
    group: list[str] = []
    for name in sorted(views, key=lambda name: (str(views[name].path), views[name].start)):
        place = views[name]
        if group and (place.path != views[group[0]].path or place.start - views[group[0]].start > span):
            yield group
            group = []
        group.append(name)
    if group:
        yield group


def _fill(pieces: Sequence[_Piece], device: torch.device) -> None:
    """Reads all pieces. Raises CheckpointError naming the file that cannot be read."""
    if not pieces:
        return
    reader = _Reader(device, torch.cuda.current_stream(device) if device.type == "cuda" else None)
    if sum(piece.target.nbytes for piece in pieces) <= PIECE_BYTES:
        # Threads would take longer to start than this takes.
        for piece in pieces:
            reader.read(piece)
        return
    num_threads = min(MAX_THREADS, os.cpu_count() or 1, len(pieces))
    with ThreadPoolExecutor(num_threads, thread_name_prefix="weights") as pool:
        futures = [pool.submit(reader.read, piece) for piece in pieces]
        try:
            for future in futures:
                future.result()
        finally:
            pool.shutdown(cancel_futures=True)


class _Reader(threading.local):
    """What every reading thread has for itself: open files, a buffer, and beside a GPU a stream to copy on."""

    def __init__(self, device: torch.device, computing: torch.cuda.Stream | None) -> None:
        self._device = device
        self._files: dict[Path, FileIO] = {}
        self._buffer: Tensor | None = None
        self._stream = None
        if computing is not None:
            self._stream = torch.cuda.Stream(device)
            # What was computed in the memory of the targets before may not be done with it.
            self._stream.wait_stream(computing)

    def read(self, piece: _Piece) -> None:
        """Fills the target of a piece."""
        if self._device.type == "cpu" and piece.dtype == piece.target.dtype:
            self._into(piece.target.view(torch.uint8), piece)
            return
        if self._buffer is None:
            # From page-locked memory a GPU copies by itself, at the full speed of the bus.
            self._buffer = torch.empty(PIECE_BYTES, dtype=torch.uint8, pin_memory=self._stream is not None)
        raw = self._buffer[: piece.target.numel() * piece.dtype.itemsize]
        self._into(raw, piece)
        with nullcontext() if self._stream is None else torch.cuda.stream(self._stream):
            # Converted where it arrives: a GPU does that at once.
            arrived = raw.view(piece.dtype).to(self._device, non_blocking=self._stream is not None)
            piece.target.copy_(arrived)
        if self._stream is not None:
            # While this thread waits to use its buffer again, the others read.
            self._stream.synchronize()

    def _into(self, raw: Tensor, piece: _Piece) -> None:
        try:
            if piece.path not in self._files:
                self._files[piece.path] = FileIO(piece.path)
            file = self._files[piece.path]
            file.seek(piece.start)
            buffer: Any = raw.numpy()
            rest = memoryview(buffer)
            while rest:
                count = file.readinto(rest)
                if not count:
                    raise EOFError("it ends too early")
                rest = rest[count:]
        except (OSError, EOFError) as error:
            raise damaged(piece.path, error) from error
