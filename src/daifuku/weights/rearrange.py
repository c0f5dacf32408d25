"""From one layout to another: which rows of which tensors of a file make a tensor of another file."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from daifuku.weights.encodings import Encoded
from daifuku.weights.names import NameTable, Naming, Part, Stored, name_table, of_part
from daifuku.weights.tensors import TensorFiles, raw

CPU = torch.device("cpu")


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Some rows of a tensor of a file."""

    name: str
    start: int
    stop: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Source:
    """A part of a model in its files."""

    part: Part
    naming: Naming
    files: TensorFiles
    """By names without prefix."""

    @cached_property
    def names(self) -> list[str]:
        """Of its tensors, in its files."""
        return of_part(self.files.shapes, self.part, self.naming)

    @cached_property
    def table(self) -> NameTable:
        return name_table(self.part, self.naming, self.names)

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of its tensors, by our names."""
        shapes: dict[str, tuple[int, ...]] = {}
        for name in self.names:
            ours, (rows, *rest) = self.table.ours(name), self.files.shapes[name]
            if ours is not None:
                shapes[ours] = (rows * len(self.table.stored(ours).names), *rest)
        return shapes


@dataclass(frozen=True, kw_only=True, eq=False)
class Piece:
    """A tensor of the new file."""

    name: str
    ours: str
    shape: tuple[int, ...]
    source: Source
    rows: tuple[Rows, ...]
    """What it is the stack of."""

    @property
    def encoded(self) -> list[Encoded]:
        return [self.source.files.tensors[rows.name] for rows in self.rows]

    def read(self, dtype: torch.dtype | None = None) -> Tensor:
        """In a precision, or as it is stored. Of plain tensors only the rows that are needed are ever touched."""
        parts = [part if dtype is None else part.to(dtype) for part in self._parts(dtype or torch.float32)]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def raw(self, role: str, width: int) -> Tensor:
        """The bytes, with `width` in each row, of what is encoded row by row."""
        parts = [
            raw(encoded.places, CPU)[role].flatten().view(torch.uint8).view(-1, width)[rows.start : rows.stop]
            for rows, encoded in zip(self.rows, self.encoded, strict=True)
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _parts(self, dtype: torch.dtype) -> Iterator[Tensor]:
        for rows, encoded in zip(self.rows, self.encoded, strict=True):
            held = raw(encoded.places, CPU)
            whole = held["weight"].view(encoded.shape) if encoded.decode is None else encoded.decoded(held, dtype)
            yield whole[rows.start : rows.stop]


def pieces(source: Source, naming: Naming) -> Iterator[Piece]:
    """The tensors of a file that names them as `naming` does."""
    table = name_table(source.part, naming, source.shapes)
    for ours, shape in source.shapes.items():
        held = _held(source.table.stored(ours), shape[0])
        stored = table.stored(ours)
        for name, rows in _wanted(stored, shape[0]):
            its = _joined([part for start, stop in rows for part in _cut(held, start, stop)])
            size = (shape[0] // len(stored.names), *shape[1:])
            yield Piece(name=name, ours=ours, shape=size, source=source, rows=tuple(its))


def _held(stored: Stored, num_rows: int) -> list[Rows]:
    """Our rows, in order, as the file has them."""
    half, each = num_rows // 2, num_rows // len(stored.names)
    if stored.swapped:
        (name,) = stored.names
        return [Rows(name=name, start=half, stop=num_rows), Rows(name=name, start=0, stop=half)]
    return [Rows(name=name, start=0, stop=each) for name in stored.names]


def _wanted(stored: Stored, num_rows: int) -> Iterator[tuple[str, list[tuple[int, int]]]]:
    """The tensors that a layout has of ours, and the rows of ours that each is the stack of."""
    half, each = num_rows // 2, num_rows // len(stored.names)
    for index, name in enumerate(stored.names):
        yield name, [(half, num_rows), (0, half)] if stored.swapped else [(index * each, (index + 1) * each)]


def _cut(held: Sequence[Rows], start: int, stop: int) -> Iterator[Rows]:
    """The part of a stack from one row to another."""
    at = 0
    for rows in held:
        count = rows.stop - rows.start
        first, last = max(start - at, 0), min(stop - at, count)
        if first < last:
            yield Rows(name=rows.name, start=rows.start + first, stop=rows.start + last)
        at += count


def _joined(parts: Sequence[Rows]) -> list[Rows]:
    """Neighbours become one."""
    joined: list[Rows] = []
    for rows in parts:
        if joined and joined[-1].name == rows.name and joined[-1].stop == rows.start:
            rows = Rows(name=rows.name, start=joined.pop().start, stop=rows.stop)
        joined.append(rows)
    return joined
