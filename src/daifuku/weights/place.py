"""Where tensors lie in weight files, and what is true of every format: its limits, and how a damaged file is told."""

from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from pathlib import Path

from daifuku.errors import CheckpointError

MAX_HEADER_BYTES = 16 * 2**20
"""Far more than any model needs. The reference of safetensors allows 100 MB, which as Python objects would be many
times that."""

MAX_TENSORS = 50_000

MAX_DIMS = 32

MAX_NUM_BYTES = 2**62
"""Sizes and offsets beyond make no sense, and would overflow in what they are given to."""

ITEM_BYTES = {
    **dict.fromkeys(("F64", "I64", "U64"), 8),
    **dict.fromkeys(("F32", "I32", "U32"), 4),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 2),
    **dict.fromkeys(("F8_E4M3", "F8_E5M2", "F8_E8M0", "I8", "U8", "BOOL"), 1),
}
"""Bytes of one number, by the names that safetensors has for the types."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a tensor lies in a file: `num_bytes` from byte `start` on."""

    path: Path
    dtype: str
    """As safetensors calls it, or GGUF_ and the name of a quantised type: BF16, F8_E4M3, GGUF_Q4_K."""
    shape: tuple[int, ...]
    start: int
    num_bytes: int


def damaged(path: Path, problem: object) -> CheckpointError:
    """What to raise about a file that does not hold what it should."""
    return CheckpointError(f"{path} is damaged or cut short ({problem}); download or copy it again")


def num_elements(shape: Iterable[int]) -> int:
    """Numbers in a tensor. Raises ValueError for dimensions that no tensor has, a large one beside a zero included."""
    sizes = tuple(shape)
    if len(sizes) > MAX_DIMS:
        raise ValueError(f"{len(sizes)} dimensions, more than {MAX_DIMS}")
    if any(size < 0 for size in sizes) or prod(max(size, 1) for size in sizes) > MAX_NUM_BYTES // 8:
        raise ValueError(f"{list(sizes)} is no shape")
    return prod(sizes)


def shown(name: str) -> str:
    """A name out of a file as an error may show it: short and on one line."""
    return repr(name if len(name) <= 80 else f"{name[:80]}...")
