"""How files encode weights: plain numbers, 8-bit floats with scales, bitsandbytes, blocks of GGUF.

Several of a file's tensors may be one weight: `grouped` joins them, and everything above knows weights only.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any

import torch
from torch import Tensor

from daifuku.errors import CheckpointError
from daifuku.weights import gguf_blocks
from daifuku.weights.files import DTYPE_NAMES
from daifuku.weights.place import Place, damaged

Raw = Mapping[str, Tensor]
"""A weight's tensors as the file has them, by their role."""

Decode = Callable[[Raw], Tensor]
"""The weight that they stand for, in a precision that holds it."""

FLOATS = {name: dtype for dtype, name in DTYPE_NAMES.items()}

_RAW = {"U8": torch.uint8, "I8": torch.int8, "I32": torch.int32, "I64": torch.int64, "BOOL": torch.bool} | FLOATS

_EIGHT_BIT_FLOATS = {"F8_E4M3": "fp8 e4m3fn", "F8_E5M2": "fp8 e5m2"}

MAX_JSON_BYTES = 2**16

MARKERS = frozenset({"scaled_fp8", "weight_format", "scale_input", "input_scale"})
"""Last parts of names of tensors that no weight needs: flags, and scales of inputs that are not quantised here."""

_ROLES = {
    "scale_weight": "scale",
    "weight_scale": "scale",
    "comfy_quant": "comfy",
    "SCB": "scb",
    "absmax": "absmax",
    "quant_map": "quant_map",
    "nested_absmax": "nested_absmax",
    "nested_quant_map": "nested_quant_map",
    "bitsandbytes__nf4": "nf4",
    "bitsandbytes__fp4": "fp4",
}
"""Roles of tensors that stand beside a weight, by the last part of their names."""

_QWEIGHTS = {"Q4_0_qweight": "Q4_0", "Q8_0_qweight": "Q8_0"}
"""Names of weights in blocks of GGUF inside a safetensors file."""


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """A weight as a file has it."""

    words: str
    """What this encoding is called."""
    shape: tuple[int, ...]
    places: Mapping[str, Place]
    """The file's tensors by role; a plain one has the role "weight" alone."""
    decode: Decode | None = None
    """None for a plain tensor, which only changes its precision."""
    compact: bool = False
    """Whether it takes less memory as it is stored, and can be decoded wherever it lies."""

    @property
    def num_bytes(self) -> int:
        return sum(place.num_bytes for place in self.places.values())

    def decoded(self, raw: Raw, dtype: torch.dtype) -> Tensor:
        """The weight in a precision."""
        weight = raw["weight"] if self.decode is None else self.decode(raw)
        return weight.to(dtype).view(self.shape)


def raw_dtype(place: Place) -> torch.dtype:
    """What a file's tensor is read as; blocks of GGUF as bytes. Raises CheckpointError for types no weight has."""
    if place.dtype.startswith("GGUF_"):
        return torch.uint8
    if place.dtype not in _RAW:
        raise CheckpointError(f"{place.path}: no weight is read from a tensor of type {place.dtype}")
    return _RAW[place.dtype]


def raw_shape(place: Place) -> tuple[int, ...]:
    """The shape that goes with `raw_dtype`."""
    return (place.num_bytes,) if place.dtype.startswith("GGUF_") else place.shape


def grouped(places: Mapping[str, Place]) -> dict[str, Encoded]:
    """The weights that a file's tensors make, by name.

    Raises CheckpointError for an encoding that is not known, or whose tensors do not go together.
    """
    beside: dict[str, dict[str, Place]] = {}
    found: dict[str, Encoded] = {}
    alone: dict[str, Place] = {}
    for name, place in places.items():
        parent, _, last = name.rpartition(".")
        weight = parent.removesuffix(".quant_state").removesuffix(".weight") + ".weight"
        if last in _ROLES and weight in places:
            beside.setdefault(weight, {})[_ROLES[last]] = place
        elif last in _QWEIGHTS:
            found[f"{parent}.weight"] = _block_bytes(place, _QWEIGHTS[last])
        elif last not in MARKERS:
            alone[name] = place
    for name, place in alone.items():
        found[name] = _joined(name, place, beside[name]) if name in beside else _single(place)
    return found


def _single(place: Place) -> Encoded:
    if not place.dtype.startswith("GGUF_"):
        words = _EIGHT_BIT_FLOATS.get(place.dtype) or str(FLOATS.get(place.dtype, place.dtype)).removeprefix("torch.")
        compact = place.dtype in _EIGHT_BIT_FLOATS
        return Encoded(words=words, shape=place.shape, places={"weight": place}, compact=compact)
    kind = place.dtype.removeprefix("GGUF_")
    return _blocks(place, kind, place.shape, f"GGUF {kind}")


def _block_bytes(place: Place, kind: str) -> Encoded:
    length, width = gguf_blocks.SIZES[kind]
    *rows, row_bytes = place.shape or (0,)
    if place.dtype != "U8" or row_bytes % width:
        raise damaged(place.path, f"a weight in blocks of {kind} should be bytes in rows of a multiple of {width}")
    return _blocks(place, kind, (*rows, row_bytes // width * length), f"{kind} blocks")


def _blocks(place: Place, kind: str, shape: tuple[int, ...], words: str) -> Encoded:
    known = kind in gguf_blocks.SIZES
    decode = partial(_decode_blocks if known else _decode_elsewhere, place, kind)
    return Encoded(words=words, shape=shape, places={"weight": place}, decode=decode, compact=known)


def _joined(name: str, place: Place, beside: Mapping[str, Place]) -> Encoded:
    """A weight and what stands beside it."""
    places = {"weight": place, **beside}
    if "nf4" in beside or "fp4" in beside:
        return _four_bit(name, places, "nf4" if "nf4" in beside else "fp4")
    if "scb" in beside:
        if place.dtype != "I8" or len(place.shape) != 2 or beside["scb"].shape != place.shape[:1]:
            raise damaged(place.path, f"{name} should be 8-bit whole numbers, and its SCB have one number a row")
        places = {"weight": place, "scb": beside["scb"]}
        return Encoded(words="int8 of bitsandbytes", shape=place.shape, places=places, decode=_decode_scb, compact=True)
    if "comfy" in beside:
        form = _json(name, beside["comfy"]).get("format")
        if place.dtype not in (*_EIGHT_BIT_FLOATS, "I8") or "scale" not in beside:
            raise CheckpointError(
                f"{place.path}: {name} is quantised as {form!r}, which is not read: fp8 and int8 with a scale are. "
                "Take a file of the same weights in bf16, fp8 or GGUF"
            )
    if "scale" not in beside:
        raise CheckpointError(
            f"{place.path}: {name} has {', '.join(sorted(beside))} beside it, which is no known encoding"
        )
    scale = beside["scale"]
    rows = place.shape[0] if place.shape else 1
    if prod(scale.shape) != 1 and (scale.shape[:1] != (rows,) or prod(scale.shape) != rows):
        raise CheckpointError(
            f"{place.path}: {name} is {list(place.shape)} and its scale {list(scale.shape)}: one scale for a weight or "
            "one for each row is read. Take a file of the same weights in bf16 or GGUF"
        )
    words = _EIGHT_BIT_FLOATS.get(place.dtype) or str(raw_dtype(place)).removeprefix("torch.")
    return Encoded(
        words=f"{words} scaled",
        shape=place.shape,
        places={"weight": place, "scale": scale},
        decode=_decode_scaled,
        compact=raw_dtype(place).itemsize == 1,
    )


def _four_bit(name: str, places: Mapping[str, Place], kind: str) -> Encoded:
    """NF4 or FP4 as bitsandbytes saves it."""
    weight, state = places["weight"], _json(name, places[kind])
    roles = ["weight", "absmax", "quant_map"]
    try:
        shape = tuple(int(size) for size in state["shape"])
        block, nested = int(state["blocksize"]), None
        if "nested_absmax" in places:
            nested = int(state["nested_blocksize"]), float(state["nested_offset"])
            roles += ["nested_absmax", "nested_quant_map"]
        needed = -(-prod(shape) // block) if block > 0 else -1
        counts = {role: prod(places[role].shape) for role in roles}
        sound = min(shape, default=0) > 0 and 0 <= 2 * weight.num_bytes - prod(shape) <= 1
        sound = sound and counts["absmax"] == needed and counts["quant_map"] == 16
        if nested is not None:
            sound = sound and nested[0] > 0 and counts["nested_absmax"] == -(-needed // nested[0])
            sound = sound and counts["nested_quant_map"] == 256
    except (KeyError, TypeError, ValueError) as error:
        raise damaged(weight.path, f"the quantisation state of {name} is not whole: {error}") from error
    if not sound:
        raise damaged(weight.path, f"the quantisation state of {name} does not fit its weight")
    return Encoded(
        words=f"{kind.upper()} of bitsandbytes",
        shape=shape,
        places={role: places[role] for role in roles},
        decode=partial(_decode_four_bit, prod(shape), block, nested),
        compact=True,
    )


def _json(name: str, place: Place) -> dict[str, Any]:
    """The object that is written out in a tensor of bytes."""
    if place.num_bytes > MAX_JSON_BYTES:
        raise damaged(place.path, f"what describes {name} has {place.num_bytes} bytes, more than {MAX_JSON_BYTES}")
    try:
        with open(place.path, "rb") as file:
            file.seek(place.start)
            found = json.loads(file.read(place.num_bytes))
    except (OSError, ValueError, RecursionError) as error:
        raise damaged(place.path, f"what describes {name} is no JSON: {error}") from error
    if not isinstance(found, dict):
        raise damaged(place.path, f"what describes {name} is no JSON object")
    return found


def _decode_scaled(raw: Raw) -> Tensor:
    weight, scale = raw["weight"].float(), raw["scale"].float()
    return weight.mul_(scale.reshape(-1, *[1] * (weight.dim() - 1)) if scale.numel() > 1 else scale.reshape(()))


def _decode_scb(raw: Raw) -> Tensor:
    """Rows were divided by their largest magnitude and multiplied by 127 (Dettmers et al., 2022, arXiv 2208.07339)."""
    return raw["weight"].float().mul_((raw["scb"].float() / 127).unsqueeze(1))


def _decode_four_bit(num_weights: int, block: int, nested: tuple[int, float] | None, raw: Raw) -> Tensor:
    """Levels times the largest magnitude of each block, which may be quantised in the same way once more.

    Dettmers et al., 2023, arXiv 2305.14314. Of two weights in a byte the first is the upper half.
    """
    largest = raw["absmax"].flatten()
    if nested is not None:
        nested_block, offset = nested
        scale = raw["nested_absmax"].float().repeat_interleave(nested_block)[: largest.numel()]
        largest = raw["nested_quant_map"].float()[largest.int()] * scale + offset
    codes = raw["weight"].flatten().view(torch.uint8)
    weights = raw["quant_map"].float()[torch.stack((codes >> 4, codes & 15), dim=-1).flatten().int()][:num_weights]
    if num_weights % block == 0:
        return weights.view(-1, block).mul_(largest.float().unsqueeze(1))
    return weights.mul_(largest.float().repeat_interleave(block)[:num_weights])


def _decode_blocks(place: Place, kind: str, raw: Raw) -> Tensor:
    return gguf_blocks.unpack(kind, raw["weight"].flatten())


def _decode_elsewhere(place: Place, kind: str, raw: Raw) -> Tensor:
    try:
        return gguf_blocks.unpack_elsewhere(kind, raw["weight"].flatten())
    except ImportError as error:
        raise CheckpointError(
            f"{place.path} holds weights of type {kind}, which the package gguf unpacks (pip install gguf)"
        ) from error
    except (KeyError, NotImplementedError) as error:
        known = ", ".join(gguf_blocks.SIZES)
        raise CheckpointError(
            f"{place.path} holds weights of type {kind}, which is not read; read are {known}"
        ) from error
