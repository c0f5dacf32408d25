"""In which precision or encoding each tensor of a new file is written, and how it gets there."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from math import prod
from typing import Literal

import torch
from torch import Tensor

from daifuku.errors import CheckpointError
from daifuku.weights.encodings import FLOATS
from daifuku.weights.files import DTYPE_NAMES, Entry
from daifuku.weights.gguf_blocks import SIZES
from daifuku.weights.gguf_write import GGUFEntry
from daifuku.weights.packing import (
    BLOCK,
    FP8,
    NF4_BLOCK,
    block_kind,
    fp8_scale,
    is_large,
    is_scaled_fp8,
    nf4_levels,
    to_blocks,
    to_fp8,
    to_nf4,
    to_scaled_fp8,
)
from daifuku.weights.rearrange import CPU, Piece
from daifuku.weights.tensors import raw
from daifuku.weights.unread import FLOAT32_ALWAYS

DECODED = torch.bfloat16
"""What weights become that are stored as a layout cannot hold them."""

Holds = Literal["plain", "scaled", "blocks"]
"""What a file can hold: plain numbers, 8-bit floats with a scale too, or blocks of GGUF."""

MARKER = "scaled_fp8"
"""The tensor that tells ComfyUI that weights have a scale; of two numbers, so that it multiplies in full precision."""


@dataclass(frozen=True, kw_only=True)
class Form:
    """What was asked for. None keeps what is stored, as far as the layout holds it."""

    dtype: torch.dtype | None = None
    quantise: str | None = None
    """fp8_scaled, nf4, or a type of GGUF in capitals."""


def safetensors_entries(pieces: Sequence[Piece], prefix: str, form: Form, holds: Holds) -> list[Entry]:
    """Every name begins with the prefix."""
    entries: list[Entry] = []
    scaled = False
    for piece in pieces:
        if form.quantise == "nf4" and _is_large(piece):
            entries += _to_nf4(piece, prefix)
        elif form.quantise and _is_large(piece):
            entries += _to_scaled(piece, prefix)
            scaled = True
        elif form == Form() and _kept(piece, holds):
            entries += _kept_scaled(piece, prefix)
            scaled = True
        else:
            dtype = _precision(piece, form)
            read = partial(_read, piece, dtype)
            entries.append(Entry(name=prefix + piece.name, shape=piece.shape, dtype=dtype, read=read))
    if scaled:
        marker = partial(torch.zeros, 2, dtype=FP8)
        entries.append(Entry(name=f"{prefix}{MARKER}", shape=(2,), dtype=FP8, read=marker))
    return entries


def gguf_entries(pieces: Sequence[Piece], form: Form) -> list[GGUFEntry]:
    """8-bit floats, which GGUF does not have, become bfloat16."""
    return [_gguf_entry(piece, form) for piece in pieces]


def decoded_words(pieces: Sequence[Piece], form: Form, holds: Holds) -> list[str]:
    """Encodings that nobody asked to change and that the new file does not hold."""
    found: dict[str, None] = {}
    for piece in pieces if form == Form() else ():
        foreign = [each for each in piece.encoded if each.decode is not None or (holds == "blocks" and each.compact)]
        if foreign and not _kept(piece, holds):
            found |= dict.fromkeys(encoded.words for encoded in foreign)
    return list(found)


def _kept(piece: Piece, holds: Holds) -> bool:
    """Whether a new file holds a tensor just as it is encoded."""
    if holds == "blocks":
        return _blocks_of(piece) is not None
    return holds == "scaled" and len(piece.rows) == 1 and is_scaled_fp8(piece.encoded[0])


def _blocks_of(piece: Piece) -> str | None:
    """The type of the blocks of GGUF that all of a tensor is in."""
    kinds = {block_kind(encoded) for encoded in piece.encoded}
    return kinds.pop() if len(kinds) == 1 else None


def _gguf_entry(piece: Piece, form: Form) -> GGUFEntry:
    kept = _blocks_of(piece)
    if kept is not None and (form == Form() or (form.quantise == kept and _is_large(piece))):
        width = _row_bytes(kept, prod(piece.shape[1:]))
        return GGUFEntry(name=piece.name, kind=kept, shape=piece.shape, read=partial(piece.raw, "weight", width))
    if form.quantise is not None and _is_large(piece) and piece.shape[-1] % BLOCK == 0:
        read = partial(_to_blocks, piece, form.quantise)
        return GGUFEntry(name=piece.name, kind=form.quantise, shape=piece.shape, read=read)
    dtype = _precision(piece, form)
    dtype = DECODED if dtype.itemsize == 1 else dtype
    read = partial(_read, piece, dtype)
    return GGUFEntry(name=piece.name, kind=DTYPE_NAMES[dtype], shape=piece.shape, read=read)


def _row_bytes(kind: str, num_cols: int) -> int:
    length, width = SIZES[kind]
    return num_cols // length * width


def _is_large(piece: Piece) -> bool:
    return is_large(piece.source.part, piece.ours, piece.shape)


def _plain(piece: Piece) -> torch.dtype | None:
    """The precision that a tensor is stored in; None where it is encoded, or of several kinds of 8-bit floats."""
    if any(encoded.decode is not None for encoded in piece.encoded):
        return None
    places = [encoded.places["weight"] for encoded in piece.encoded]
    for place in places:
        if place.dtype not in FLOATS:
            raise CheckpointError(f"{place.path}: {piece.name} is {place.dtype}; only floating-point weights convert")
    found = {FLOATS[place.dtype] for place in places}
    if len(found) == 1:
        return found.pop()
    wide = {DECODED if dtype.itemsize == 1 else dtype for dtype in found}
    return wide.pop() if len(wide) == 1 else torch.float32


def _precision(piece: Piece, form: Form) -> torch.dtype:
    if piece.ours in FLOAT32_ALWAYS:
        return torch.float32
    stored = _plain(piece) or DECODED
    if form.dtype is None:
        return stored
    if form.dtype != FP8 or _is_large(piece):
        return form.dtype
    # Only large layers become 8-bit floats: all others are small, and not made for it.
    return DECODED if stored.itemsize == 1 else stored


def _read(piece: Piece, dtype: torch.dtype) -> Tensor:
    if dtype == FP8 and _plain(piece) != FP8:
        return to_fp8(piece.read(_plain(piece) or DECODED))
    return piece.read(dtype)


def _whole(piece: Piece) -> Tensor:
    """To be quantised."""
    stored = _plain(piece)
    return piece.read(DECODED if stored is None or stored.itemsize == 1 else stored)


def _to_blocks(piece: Piece, kind: str) -> Tensor:
    return to_blocks(kind, _whole(piece))


def _to_scaled(piece: Piece, prefix: str) -> Iterator[Entry]:
    # Scales are written first; remembered, the weight need not be looked through a second time.
    scale = cache(lambda: fp8_scale(_whole(piece)))
    yield Entry(name=prefix + _scale_name(piece), shape=(), dtype=torch.float32, read=scale)
    read = partial(_scaled, piece, scale)
    yield Entry(name=prefix + piece.name, shape=piece.shape, dtype=FP8, read=read)


def _scaled(piece: Piece, scale: Callable[[], Tensor]) -> Tensor:
    return to_scaled_fp8(_whole(piece), scale())


def _to_nf4(piece: Piece, prefix: str) -> Iterator[Entry]:
    """As bitsandbytes saves a layer. Packed once for each of the two large tensors, so that neither has to wait."""
    count = prod(piece.shape)
    state = {"quant_type": "nf4", "blocksize": NF4_BLOCK, "dtype": "bfloat16", "shape": list(piece.shape)}
    text = json.dumps(state).encode()
    tensors: tuple[tuple[str, tuple[int, ...], torch.dtype, Callable[[], Tensor]], ...] = (
        ("", (-(-count // 2), 1), torch.uint8, lambda: to_nf4(_whole(piece))[0]),
        (".absmax", (-(-count // NF4_BLOCK),), torch.float32, lambda: to_nf4(_whole(piece))[1]),
        (".quant_map", (16,), torch.float32, nf4_levels),
        (
            ".quant_state.bitsandbytes__nf4",
            (len(text),),
            torch.uint8,
            lambda: torch.frombuffer(bytearray(text), dtype=torch.uint8),
        ),
    )
    for end, shape, dtype, read in tensors:
        yield Entry(name=f"{prefix}{piece.name}{end}", shape=shape, dtype=dtype, read=read)


def _kept_scaled(piece: Piece, prefix: str) -> Iterator[Entry]:
    scale = piece.encoded[0].places["scale"]
    yield Entry(
        name=prefix + _scale_name(piece),
        shape=(),
        dtype=torch.float32,
        read=lambda: raw({"scale": scale}, CPU)["scale"].float().reshape(()),
    )
    width = prod(piece.shape[1:])
    read = partial(_raw_fp8, piece, width)
    yield Entry(name=prefix + piece.name, shape=piece.shape, dtype=FP8, read=read)


def _raw_fp8(piece: Piece, width: int) -> Tensor:
    return piece.raw("weight", width).view(FP8).view(piece.shape)


def _scale_name(piece: Piece) -> str:
    return f"{piece.name.removesuffix('weight')}scale_weight"
