"""The safetensors format (github.com/huggingface/safetensors): what a file holds and where.

A header is believed only when its tensors are of known shapes and fill the file one after the other, with no gap.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

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

METADATA = "__metadata__"

MAX_VALUES = 500_000
"""In one header, whatever it is made of. It keeps the Python objects below what the header itself may take."""


@dataclass(frozen=True, kw_only=True)
class _Header:
    metadata: dict[str, str]
    tensors: dict[str, Any]
    data_start: int


def safetensors_places(path: Path) -> dict[str, Place]:
    """Every tensor of a safetensors file, by name. Reads its header only. Raises CheckpointError.

    A type that the format may get one day is no error as long as nobody reads such a tensor.
    """
    header = _read(path)
    found: dict[str, Place] = {}
    for name, about in header.tensors.items():
        try:
            found[name] = _place(path, about, header.data_start)
        except (ValueError, KeyError, TypeError) as error:
            what = f"{error} is missing" if isinstance(error, KeyError) else error
            raise damaged(path, f"the tensor {shown(name)}: {what}") from error
    end = header.data_start
    for name, place in sorted(found.items(), key=lambda item: (item[1].start, item[1].num_bytes)):
        if place.start != end:
            raise damaged(path, f"the tensor {shown(name)} should start at byte {end}, not {place.start}")
        end += place.num_bytes
    if end != (size := path.stat().st_size):
        raise damaged(path, f"it has {size} bytes, and its tensors end at byte {end}")
    return found


def safetensors_metadata(path: Path) -> dict[str, str]:
    """What the writer of a file put into it as text. Raises CheckpointError."""
    return _read(path).metadata


def _read(path: Path) -> _Header:
    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            num_bytes = int.from_bytes(file.read(8), "little")
            if size < 8 or num_bytes > size - 8:
                raise ValueError(f"it has {size} bytes, and its header should end at byte {8 + num_bytes}")
            if num_bytes > MAX_HEADER_BYTES:
                raise ValueError(f"a header of {num_bytes} bytes, more than {MAX_HEADER_BYTES}")
            raw = file.read(num_bytes)
        if raw[:1] != b"{":
            raise ValueError("at byte 8: its header is no JSON object")
        if sum(map(raw.count, (b",", b"[", b"{"))) > MAX_VALUES:
            raise ValueError(f"a header of more than {MAX_VALUES} values")
        header = json.loads(raw.decode("utf-8"), object_pairs_hook=_no_duplicates)
        metadata = header.pop(METADATA, {})
        if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
            raise ValueError(f"its {METADATA} is not made of texts")
        if len(header) > MAX_TENSORS:
            raise ValueError(f"{len(header)} tensors, more than {MAX_TENSORS}")
    except json.JSONDecodeError as error:
        raise damaged(path, f"at byte {8 + error.pos}: its header is no JSON, {error.msg}") from error
    except UnicodeDecodeError as error:
        raise damaged(path, f"at byte {8 + error.start}: its header is no UTF-8") from error
    except RecursionError as error:
        raise damaged(path, "its header is nested too deep") from error
    except (OSError, ValueError) as error:
        raise damaged(path, error) from error
    return _Header(metadata=metadata, tensors=header, data_start=8 + num_bytes)


def _place(path: Path, about: Any, data_start: int) -> Place:
    """Of one entry of the header. Raises ValueError, KeyError or TypeError where it makes no sense."""
    if not isinstance(about, dict):
        raise TypeError("no JSON object")
    dtype, shape, (start, end) = about["dtype"], _whole(about["shape"]), _whole(about["data_offsets"])
    if not isinstance(dtype, str):
        raise TypeError("its dtype is no text")
    if not start <= end <= MAX_NUM_BYTES:
        raise ValueError(f"its data_offsets are {start} and {end}")
    num_bytes = end - start
    if dtype in ITEM_BYTES and num_elements(shape) * ITEM_BYTES[dtype] != num_bytes:
        raise ValueError(f"{num_bytes} bytes do not hold {dtype} {list(shape)}")
    return Place(path=path, dtype=dtype, shape=shape, start=data_start + start, num_bytes=num_bytes)


def _whole(numbers: object) -> tuple[int, ...]:
    if not isinstance(numbers, list) or any(type(number) is not int or number < 0 for number in numbers):
        raise TypeError("its shape and data_offsets have to be lists of whole numbers")
    return tuple(numbers)


def _no_duplicates(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = sorted(name for name, _ in pairs)
        twice = next(first for first, second in pairwise(names) if first == second)
        raise ValueError(f"its header has {shown(twice)} twice")
    return found
