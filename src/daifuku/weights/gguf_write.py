"""Writes GGUF files (github.com/ggml-org/ggml, docs/gguf.md), version 3: what `gguf_file` reads."""

import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from daifuku.weights.files import published
from daifuku.weights.gguf_file import BLOCK_TYPES, DEFAULT_ALIGNMENT, MAGIC, PLAIN_TYPES
from daifuku.weights.place import ITEM_BYTES

_NUMBERS = {name: number for number, name in PLAIN_TYPES.items()}
_NUMBERS |= {name: number for number, (name, _, _) in BLOCK_TYPES.items()}

_BLOCKS = {name: (length, width) for name, length, width in BLOCK_TYPES.values()}

_U32, _STRING = 4, 8

_VERSION = 3


@dataclass(frozen=True, kw_only=True)
class GGUFEntry:
    """One tensor to be written. `read` gives it when its turn comes: as numbers, or as the bytes of its blocks."""

    name: str
    kind: str
    """As the format calls it: F32, BF16, Q8_0."""
    shape: tuple[int, ...]
    """Of the weight, in torch's order."""
    read: Callable[[], Tensor]

    @property
    def num_bytes(self) -> int:
        length, width = _BLOCKS[self.kind] if self.kind in _BLOCKS else (1, ITEM_BYTES[self.kind])
        return prod(self.shape) // length * width


def write_gguf(path: Path, entries: Sequence[GGUFEntry], metadata: Mapping[str, str | int]) -> None:
    """Raises UnwritableOutput when the file cannot be written; then whatever was there before is still there."""
    header = MAGIC + struct.pack("<IQQ", _VERSION, len(entries), len(metadata))
    for key, value in metadata.items():
        text = isinstance(value, str)
        header += _text(key) + (struct.pack("<I", _STRING) + _text(value) if text else struct.pack("<II", _U32, value))
    offset = 0
    for entry in entries:
        # The innermost axis comes first there.
        sizes = struct.pack(f"<I{len(entry.shape)}Q", len(entry.shape), *entry.shape[::-1])
        header += _text(entry.name) + sizes + struct.pack("<IQ", _NUMBERS[entry.kind], offset)
        offset += entry.num_bytes + _padding(entry.num_bytes)
    with published(path) as file:
        file.write(header + bytes(_padding(len(header))))
        for entry in entries:
            data = entry.read().contiguous().flatten().view(torch.uint8)
            assert data.numel() == entry.num_bytes, f"{entry.name} has {data.numel()} bytes, not {entry.num_bytes}"
            file.write(data.numpy().data)
            file.write(bytes(_padding(entry.num_bytes)))


def _text(text: str) -> bytes:
    content = text.encode()
    return struct.pack("<Q", len(content)) + content


def _padding(num_bytes: int) -> int:
    return -num_bytes % DEFAULT_ALIGNMENT
