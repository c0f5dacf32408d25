"""Values as users write them: numbers, LoRAs with their strengths, and how errors quote what is wrong."""

import math
import operator
import re
from collections.abc import Mapping, Sequence
from numbers import Real
from pathlib import PurePath
from typing import Any

from daifuku.errors import InvalidRequest

SHOWN_CHARACTERS = 60

MAX_STRENGTH = 100.0
"""Of a LoRA, either way."""

MAX_LORAS = 64

Loras = tuple[tuple[str, float], ...]
"""Files of LoRAs, and how strongly each acts."""

LORA_SCHEMA: Mapping[str, Any] = {
    "anyOf": [
        {"type": "string"},
        {"type": "array", "prefixItems": [{"type": "string"}, {"type": "number"}], "minItems": 2, "maxItems": 2},
        {
            "type": "object",
            "properties": {"path": {"type": "string"}, "strength": {"type": "number"}},
            "required": ["path"],
            "additionalProperties": False,
        },
    ]
}
"""JSON Schema of one LoRA of a request."""

_UNUSABLE = re.compile(r"[\0\ud800-\udfff]")
"""What no name of a file contains."""


def as_loras(name: str, value: Any) -> Loras:
    """LoRAs in any of their spellings: "file", "file:0.8", ["file", 0.8], {"path": "file", "strength": 0.8}.

    Raises InvalidRequest, calling the field `name`.
    """
    hint = 'Try [["style.safetensors", 0.8]].'
    value = [value] if isinstance(value, str) else value
    if isinstance(value, bytes) or not isinstance(value, Sequence):
        raise InvalidRequest(f"{name}={shown(value)} is no list of LoRAs. {hint}")
    if len(value) > MAX_LORAS:
        raise InvalidRequest(f"{name} has {len(value)} LoRAs; at most {MAX_LORAS} work. Try fewer.")
    found: list[tuple[str, float]] = []
    for one in value:
        path, strength = _split(one)
        number = as_real(strength)
        if not isinstance(path, str) or not path.strip() or _UNUSABLE.search(path):
            raise InvalidRequest(f"{name}: {shown(one)} names no LoRA file. {hint}")
        if number is None or abs(number) > MAX_STRENGTH:
            limits = f"a number from {-MAX_STRENGTH} to {MAX_STRENGTH}"
            raise InvalidRequest(f"{name}: the strength of {shown(path)} is {shown(strength)}, not {limits}. Try 1.0.")
        found.append((path, number))
    return tuple(found)


def _split(value: Any) -> tuple[Any, Any]:
    """File and strength; None for a file where neither can be told."""
    if isinstance(value, PurePath):
        return str(value), 1.0
    if isinstance(value, str):
        # A colon may belong to the path, as on Windows.
        path, _, last = value.rpartition(":")
        try:
            return (path, float(last)) if path else (value, 1.0)
        except ValueError:
            return value, 1.0
    if isinstance(value, Mapping) and value.keys() <= {"path", "strength"}:
        return value.get("path"), value.get("strength", 1.0)
    if isinstance(value, list | tuple) and len(value) == 2:
        return str(value[0]) if isinstance(value[0], PurePath) else value[0], value[1]
    return None, 1.0


def as_whole(value: Any) -> int | None:
    """The integer that a value is, numpy's included; True and 2.0 are none."""
    try:
        return None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        return None


def as_real(value: Any) -> float | None:
    """The finite float that a number is, numpy's included; True is none."""
    if isinstance(value, bool) or not isinstance(value, Real):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def shown(value: object) -> str:
    """How an error message quotes a value: never long, never failing, even for a number of ten thousand digits."""
    try:
        text = repr(value)
    except ValueError:
        return f"a {type(value).__name__} too long to show"
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}..."


def either(values: Sequence[str]) -> str:
    """ "a, b or c" """
    *rest, last = values
    return f"{', '.join(rest)} or {last}" if rest else last


def as_json(value: Any) -> Any:
    """With lists in the place of tuples."""
    return [as_json(one) for one in value] if isinstance(value, tuple) else value
