"""The safetensors format: what a file holds and where. Writes such files and JSON, whole or not at all."""

import json
import os
import re
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from uuid import uuid4

import torch
from torch import Tensor

from daifuku.errors import CheckpointError, ModelNotFound, UnwritableOutput

DTYPE_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
}
"""What the format calls the precisions that weights come in."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a tensor lies in a file: `num_bytes` from byte `start` on."""

    path: Path
    dtype: str
    """In the format's own words."""
    shape: tuple[int, ...]
    start: int
    num_bytes: int


def places(path: Path) -> dict[str, Place]:
    """Every tensor of a safetensors file, by name. Reads its header only.

    Raises ModelNotFound where there is no file, and CheckpointError where it is damaged or cut short.
    """
    if not path.is_file():
        raise ModelNotFound(f"there is no file {path}")
    try:
        with open(path, "rb") as file:
            (header_bytes,) = struct.unpack("<Q", file.read(8))
            size = path.stat().st_size
            if header_bytes > size - 8:
                raise ValueError("its header is not whole")
            header = json.loads(file.read(header_bytes))
        found = {
            name: _place(path, about, 8 + header_bytes) for name, about in header.items() if name != "__metadata__"
        }
        end = 8 + header_bytes
        for place in sorted(found.values(), key=lambda place: (place.start, place.num_bytes)):
            if place.start != end:
                raise ValueError("its tensors do not lie one after the other")
            end += place.num_bytes
        if end != size:
            raise ValueError(f"it has {size} bytes, and its tensors end at {end}")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
        raise damaged(path, error) from error
    return found


def damaged(path: Path, problem: object) -> CheckpointError:
    """What to raise about a file that does not hold what it should."""
    return CheckpointError(f"{path} is damaged or cut short ({problem}); download or copy it again")


def _place(path: Path, about: Mapping[str, Any], data_start: int) -> Place:
    """Of one entry of the header. Raises ValueError, KeyError or TypeError where it makes no sense."""
    start, stop = about["data_offsets"]
    place = Place(
        path=path,
        dtype=about["dtype"],
        shape=tuple(about["shape"]),
        start=data_start + start,
        num_bytes=stop - start,
    )
    known = {name: dtype.itemsize for dtype, name in DTYPE_NAMES.items()}
    expected = torch.Size(place.shape).numel() * known.get(place.dtype, 0)
    if min((0, start, place.num_bytes, *place.shape)) < 0 or (place.dtype in known and expected != place.num_bytes):
        raise ValueError(f"{place.num_bytes} bytes do not hold {place.dtype} {list(place.shape)}")
    return place


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One tensor to be written. `read` gives it when its turn comes."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[], Tensor]

    @property
    def num_bytes(self) -> int:
        return torch.Size(self.shape).numel() * self.dtype.itemsize


def write_safetensors(path: Path, entries: Sequence[Entry]) -> None:
    """Raises UnwritableOutput when the file cannot be written; then whatever was there before is still there."""
    # Wide types first: every tensor then starts at a multiple of its own width, as memory maps need it.
    entries = sorted(entries, key=lambda entry: (-entry.dtype.itemsize, entry.name))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for entry in entries:
        start, end = end, end + entry.num_bytes
        dtype, shape = DTYPE_NAMES[entry.dtype], list(entry.shape)
        header[entry.name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with published(path) as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for entry in entries:
            tensor = entry.read().to(device="cpu", dtype=entry.dtype).contiguous()
            file.write(tensor.flatten().view(torch.uint8).numpy().data)


def write_shards(folder: Path, stem: str, entries: Sequence[Entry], max_bytes: int) -> None:
    """One file, or as many of at most `max_bytes` as it takes, with an index. Older files of that stem go away."""
    shards: list[list[Entry]] = [[]]
    for entry in entries:
        if shards[-1] and sum(other.num_bytes for other in shards[-1]) + entry.num_bytes > max_bytes:
            shards.append([])
        shards[-1].append(entry)
    names = [f"{stem}-{i:05}-of-{len(shards):05}.safetensors" for i in range(1, len(shards) + 1)]
    if len(shards) == 1:
        names = [f"{stem}.safetensors"]
    for name, shard in zip(names, shards, strict=True):
        write_safetensors(folder / name, shard)
    index = f"{stem}.safetensors.index.json"
    if len(shards) > 1:
        weight_map = {entry.name: name for name, shard in zip(names, shards, strict=True) for entry in shard}
        total = sum(entry.num_bytes for entry in entries)
        write_json(folder / index, {"metadata": {"total_size": total}, "weight_map": weight_map})
        names.append(index)
    written_before = re.compile(rf"{re.escape(stem)}(-\d{{5}}-of-\d{{5}})?\.safetensors(\.index\.json)?")
    for path in folder.iterdir():
        if written_before.fullmatch(path.name) and path.name not in names:
            path.unlink()


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Raises UnwritableOutput when the file cannot be written."""
    with published(path) as file:
        file.write((json.dumps(content, indent=2) + "\n").encode())


@contextmanager
def published(path: Path) -> Iterator[IO[bytes]]:
    """A file that appears under its name when the block ends well, and not at all otherwise."""
    draft = path.with_name(f".{path.name}.{uuid4().hex}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(draft, "xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            draft.replace(path)
        finally:
            draft.unlink(missing_ok=True)
    except OSError as error:
        raise UnwritableOutput(f"{path} cannot be written: {error.strerror or error}") from error
