"""Weight files of either format: what they hold and where. Writes safetensors and JSON, whole or not at all."""

import json
import os
import re
import struct
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal
from uuid import uuid4

import torch
from torch import Tensor

from daifuku.errors import CheckpointError, ModelNotFound, UnwritableOutput
from daifuku.weights.gguf_file import MAGIC, gguf_metadata, gguf_places
from daifuku.weights.place import Place, damaged, shown
from daifuku.weights.safetensors_file import safetensors_metadata, safetensors_places

DTYPE_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
}
"""What the format calls the precisions that weights come in."""

_NAMES = DTYPE_NAMES | {torch.uint8: "U8", torch.int8: "I8", torch.int32: "I32", torch.int64: "I64", torch.bool: "BOOL"}
"""And what it calls all types that are written."""

PICKLE_SUFFIXES = frozenset({".ckpt", ".pt", ".pth", ".bin", ".pkl"})

_PICKLE_HEADS = (b"PK\x03\x04", *(bytes([0x80, protocol]) for protocol in range(2, 6)))


def places(path: Path) -> dict[str, Place]:
    """Every tensor of a safetensors or GGUF file, by name; its first bytes tell which it is. Reads its header only.

    Raises ModelNotFound where there is no file, and CheckpointError where it is damaged or cut short, or a pickle.
    """
    return gguf_places(path) if _format(path) == "gguf" else safetensors_places(path)


def metadata(path: Path) -> dict[str, str]:
    """What a file says about itself: `__metadata__` of safetensors, keys and values of GGUF. Raises as `places`."""
    return gguf_metadata(path) if _format(path) == "gguf" else safetensors_metadata(path)


def refuse_pickle(path: Path) -> None:
    """Raises CheckpointError, with the way out, for a file that would have to be unpickled, and ModelNotFound."""
    _format(path)


def check_shards(index: Path, names: Collection[object]) -> None:
    """Raises CheckpointError for names in an index of shards that lead out of its folder, themselves or as links.

    The hub's cache keeps files as links to the blobs of the same repository: those are where they should be.
    """
    folder = index.parent.resolve()
    homes = [folder, *(parent.parent / "blobs" for parent in folder.parents if parent.name == "snapshots")]
    for name in names:
        if not isinstance(name, str) or name in ("", "..") or Path(name).name != name:
            raise CheckpointError(f"{index} lists a file outside its folder: {shown(str(name))}")
        path = folder / name
        if path.is_symlink():
            target = Path(os.path.normpath(folder / path.readlink()))
            if target.parent not in homes:
                raise CheckpointError(
                    f"{index} lists {shown(name)}, a link that leads out of its folder to {target}; put the file "
                    "itself there, or link the whole folder"
                )


def _format(path: Path) -> Literal["gguf", "safetensors"]:
    """By its first bytes. Raises ModelNotFound, and CheckpointError for a pickle."""
    if not path.is_file():
        raise ModelNotFound(f"there is no file {path}")
    try:
        with open(path, "rb") as file:
            head = file.read(9)
    except OSError as error:
        raise damaged(path, error) from error
    if head.startswith(MAGIC):
        return "gguf"
    # The length of a safetensors header can look like the first bytes of a pickle, but not what follows it.
    sound = head[8:] == b"{"
    if not sound and (path.suffix.lower() in PICKLE_SUFFIXES or head.startswith(_PICKLE_HEADS)):
        raise CheckpointError(
            f"{path} is a pickle, which can run anything while it is read, so it is never opened here. Take the "
            ".safetensors or .gguf file of the same weights, or load it where you trust it and save its tensors with "
            "safetensors.torch.save_file"
        )
    return "safetensors"


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


def write_safetensors(path: Path, entries: Sequence[Entry], metadata: Mapping[str, str] | None = None) -> None:
    """`metadata` is what the file says about itself.

    Raises UnwritableOutput when the file cannot be written; then whatever was there before is still there.
    """
    # Wide types first: every tensor then starts at a multiple of its own width, as memory maps need it.
    entries = sorted(entries, key=lambda entry: (-entry.dtype.itemsize, entry.name))
    header: dict[str, Any] = {"__metadata__": {"format": "pt", **(metadata or {})}}
    end = 0
    for entry in entries:
        start, end = end, end + entry.num_bytes
        dtype, shape = _NAMES[entry.dtype], list(entry.shape)
        header[entry.name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with published(path) as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for entry in entries:
            tensor = entry.read().to(device="cpu", dtype=entry.dtype).contiguous()
            assert tensor.shape == entry.shape, f"{entry.name} is {list(tensor.shape)}, not {list(entry.shape)}"
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
