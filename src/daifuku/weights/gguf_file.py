"""The GGUF format (github.com/ggml-org/ggml, docs/gguf.md), versions 2 and 3: what a file holds and where.

A header is read in order; every count and length is checked against what is left of the file before it is believed.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from daifuku.errors import CheckpointError
from daifuku.weights.place import (
    ITEM_BYTES,
    MAX_HEADER_BYTES,
    MAX_NUM_BYTES,
    MAX_TENSORS,
    Place,
    damaged,
    num_elements,
    shown,
)

MAGIC = b"GGUF"

VERSIONS = (2, 3)

DEFAULT_ALIGNMENT, MAX_ALIGNMENT = 32, 2**20

MAX_GGML_DIMS, MAX_NESTING, MAX_NAME_BYTES = 4, 4, 2**16

PLAIN_TYPES = {0: "F32", 1: "F16", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64", 30: "BF16"}
"""Numbers of the types that safetensors has too."""

BLOCK_TYPES = {
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    9: ("Q8_1", 32, 40),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    15: ("Q8_K", 256, 292),
    16: ("IQ2_XXS", 256, 66),
    17: ("IQ2_XS", 256, 74),
    18: ("IQ3_XXS", 256, 98),
    19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18),
    21: ("IQ3_S", 256, 110),
    22: ("IQ2_S", 256, 82),
    23: ("IQ4_XS", 256, 136),
    29: ("IQ1_M", 256, 56),
    34: ("TQ1_0", 256, 54),
    35: ("TQ2_0", 256, 66),
    39: ("MXFP4", 32, 17),
    40: ("NVFP4", 64, 36),
    41: ("Q1_0", 128, 18),
}
"""Numbers of the quantised types: name, numbers in a block, bytes of a block."""

ORIGINAL_SHAPE = "comfy.gguf.orig_shape."
"""A tensor whose rows do not divide into blocks is stored in another shape, and its own stands under this key."""

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_U32, _BOOL, _STRING, _ARRAY = 4, 7, 8, 9


@dataclass(frozen=True, kw_only=True)
class _Tensor:
    """An entry of the list of tensors: its shape in torch's order, and its offset from the first byte of data."""

    dtype: str
    shape: tuple[int, ...]
    num_bytes: int
    offset: int


@dataclass(frozen=True, kw_only=True)
class _Header:
    metadata: dict[str, str]
    tensors: dict[str, _Tensor]
    shapes: dict[str, tuple[int, ...]]
    """Tensors' own shapes, where they differ from how they are stored."""
    data_start: int
    alignment: int


def gguf_places(path: Path) -> dict[str, Place]:
    """Every tensor of a GGUF file, by name. Reads its header only.

    Shapes are in torch's order. Raises CheckpointError where the file is damaged, cut short, big-endian or of a version
    or type that is not known.
    """
    header = _read(path)
    size = path.stat().st_size
    found: dict[str, Place] = {}
    end = header.data_start
    for name, tensor in sorted(header.tensors.items(), key=lambda item: (item[1].offset, item[1].num_bytes)):
        start = header.data_start + tensor.offset
        if start != end:
            raise damaged(path, f"the tensor {shown(name)} should start at byte {end}, not {start}")
        if start + tensor.num_bytes > size:
            raise damaged(path, f"it has {size} bytes, and the tensor {shown(name)} ends at {start + tensor.num_bytes}")
        shape = header.shapes.get(name, tensor.shape)
        found[name] = Place(path=path, dtype=tensor.dtype, shape=shape, start=start, num_bytes=tensor.num_bytes)
        end = _aligned(start + tensor.num_bytes, header.alignment)
    return {name: found[name] for name in header.tensors}


def gguf_metadata(path: Path) -> dict[str, str]:
    """The keys and values of a GGUF file as text; of an array only its length and type. Raises CheckpointError."""
    return _read(path).metadata


def _read(path: Path) -> _Header:
    try:
        with open(path, "rb") as file:
            cursor = _Cursor(file.read(MAX_HEADER_BYTES))
    except OSError as error:
        raise damaged(path, error) from error
    try:
        return _header(cursor)
    except ValueError as error:
        raise damaged(path, f"at byte {cursor.at}: {error}") from error
    except _Foreign as error:
        raise CheckpointError(f"{path} {error}") from error


class _Foreign(Exception):
    """A sound file of a kind that is not read."""


class _Cursor:
    """Reads a header in order, and never beyond its end."""

    def __init__(self, start: bytes) -> None:
        self.at = 0
        self._start = start

    def bytes(self, count: int) -> bytes:
        self.expect(count, 1)
        self.at += count
        return self._start[self.at - count : self.at]

    def number(self, kind: str) -> int | float | bool:
        (number,) = struct.unpack(f"<{kind}", self.bytes(struct.calcsize(f"<{kind}")))
        return number

    def whole(self, kind: str) -> int:
        return int(self.number(kind))

    def text(self, max_bytes: int = MAX_HEADER_BYTES) -> str:
        length = self.whole("Q")
        if length > max_bytes:
            raise ValueError(f"a text of {length} bytes, more than {max_bytes}")
        return self.bytes(length).decode("utf-8")

    def skip_texts(self, count: int) -> None:
        self.expect(count, 8)
        # Vocabularies have many texts, so this loop has no calls that it can do without.
        at, start, length_of = self.at, self._start, struct.Struct("<Q").unpack_from
        for _ in range(count):
            if at + 8 > len(start):
                break
            at += 8 + length_of(start, at)[0]
        self.expect(at - self.at, 1)
        self.at = at

    def expect(self, count: int, each: int) -> None:
        """Raises ValueError unless there is room for `count` things of at least `each` bytes."""
        if count * each > (left := len(self._start) - self.at):
            why = "the file ends" if len(self._start) < MAX_HEADER_BYTES else f"a header ends at {MAX_HEADER_BYTES}"
            raise ValueError(f"{count * each} bytes should follow, and {why} after {left}")


def _header(cursor: _Cursor) -> _Header:
    if cursor.bytes(4) != MAGIC:
        raise ValueError("it does not start as a GGUF file")
    version = cursor.whole("I")
    if version and version & 0xFFFF == 0:
        raise _Foreign("is a big-endian GGUF file; use the little-endian one, which every publisher has")
    if version not in VERSIONS:
        raise _Foreign(f"is a GGUF file of version {version}, and those of version 2 and 3 are read; make it again")
    num_tensors, num_values = cursor.whole("Q"), cursor.whole("Q")
    if num_tensors > MAX_TENSORS:
        raise ValueError(f"{num_tensors} tensors, more than {MAX_TENSORS}")
    cursor.expect(num_values, 13)
    metadata, shapes, alignment = _values(cursor, num_values)
    cursor.expect(num_tensors, 24)
    tensors: dict[str, _Tensor] = {}
    for _ in range(num_tensors):
        name = cursor.text(MAX_NAME_BYTES)
        if name in tensors:
            raise ValueError(f"the tensor {shown(name)} a second time")
        tensors[name] = _tensor(cursor, name, alignment)
    for name, shape in shapes.items():
        if name in tensors and num_elements(shape) != num_elements(tensors[name].shape):
            raise ValueError(f"the tensor {shown(name)} should be {list(shape)}, and is {list(tensors[name].shape)}")
    start = _aligned(cursor.at, alignment)
    return _Header(metadata=metadata, tensors=tensors, shapes=shapes, data_start=start, alignment=alignment)


def _values(cursor: _Cursor, count: int) -> tuple[dict[str, str], dict[str, tuple[int, ...]], int]:
    """Keys and values as text, the shapes among them, and how tensors are aligned."""
    metadata: dict[str, str] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    alignment = DEFAULT_ALIGNMENT
    for _ in range(count):
        key, kind = cursor.text(MAX_NAME_BYTES), cursor.whole("I")
        if key in metadata:
            raise ValueError(f"the key {shown(key)} a second time")
        if kind == _ARRAY and key.startswith(ORIGINAL_SHAPE):
            sizes = shapes[key.removeprefix(ORIGINAL_SHAPE)] = tuple(_whole_numbers(cursor))
            metadata[key] = str(list(sizes))
        else:
            metadata[key] = _value(cursor, kind)
        if key == "general.alignment":
            alignment = int(metadata[key]) if kind == _U32 else 0
            if not 0 < alignment <= MAX_ALIGNMENT or alignment & (alignment - 1):
                raise ValueError(f"an alignment of {shown(metadata[key])}, which is no power of two")
    return metadata, shapes, alignment


def _value(cursor: _Cursor, kind: int) -> str:
    if kind in _SCALARS:
        number = cursor.number(_SCALARS[kind])
        return str(number).lower() if kind == _BOOL else str(number)
    if kind == _STRING:
        return cursor.text()
    if kind == _ARRAY:
        item, count = cursor.whole("I"), cursor.whole("Q")
        _skip_items(cursor, item, count, MAX_NESTING)
        names = {_STRING: "texts", _ARRAY: "arrays", _BOOL: "truth values"}
        return f"{count} {names.get(item, 'numbers')}"
    raise ValueError(f"a value of the unknown type {kind}")


def _skip_items(cursor: _Cursor, item: int, count: int, depth: int) -> None:
    if item in _SCALARS:
        cursor.bytes(count * struct.calcsize(f"<{_SCALARS[item]}"))
    elif item == _STRING:
        cursor.skip_texts(count)
    elif item == _ARRAY and depth:
        cursor.expect(count, 12)
        for _ in range(count):
            _skip_items(cursor, cursor.whole("I"), cursor.whole("Q"), depth - 1)
    else:
        raise ValueError(f"an array of the type {item}, or arrays more than {MAX_NESTING} deep")


def _whole_numbers(cursor: _Cursor) -> Iterator[int]:
    item, count = cursor.whole("I"), cursor.whole("Q")
    if item not in (4, 5, 10, 11) or count > 2 * MAX_GGML_DIMS:
        raise ValueError("a shape that is no short list of whole numbers")
    for _ in range(count):
        yield cursor.whole(_SCALARS[item])


def _tensor(cursor: _Cursor, name: str, alignment: int) -> _Tensor:
    num_dims = cursor.whole("I")
    if num_dims > MAX_GGML_DIMS:
        raise ValueError(f"the tensor {shown(name)} has {num_dims} dimensions, more than {MAX_GGML_DIMS}")
    shape = tuple(cursor.whole("Q") for _ in range(num_dims))[::-1]
    kind, offset = cursor.whole("I"), cursor.whole("Q")
    if kind in PLAIN_TYPES:
        dtype = PLAIN_TYPES[kind]
        length, width = 1, ITEM_BYTES[dtype]
    elif kind in BLOCK_TYPES:
        short, length, width = BLOCK_TYPES[kind]
        dtype = f"GGUF_{short}"
    else:
        raise ValueError(f"the tensor {shown(name)} has the unknown type {kind}")
    if (shape[-1] if shape else 1) % length:
        raise ValueError(f"the tensor {shown(name)} has rows of {shape[-1:]}, no multiple of {dtype}'s {length}")
    if offset % alignment or offset > MAX_NUM_BYTES:
        raise ValueError(f"the tensor {shown(name)} lies at {offset}, no multiple of {alignment}")
    return _Tensor(dtype=dtype, shape=shape, num_bytes=num_elements(shape) // length * width, offset=offset)


def _aligned(position: int, alignment: int) -> int:
    return position + -position % alignment
