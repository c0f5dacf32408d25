"""Bodies of requests: JSON read strictly, or the fields of a form, within a size and a time."""

import asyncio
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import Request

from daifuku.server.problems import Problem

MAX_DEPTH = 8
MAX_PARTS = 64
_BOUNDARY = re.compile(r"""boundary=(?:"([^"\r\n]{1,70})"|([^;\s"]{1,70}))""", re.IGNORECASE)
_PART_NAME = re.compile(r'form-data;\s*name="([^"\r\n]{1,64})"(;\s*filename="?[^"\r\n]*"?)?', re.IGNORECASE)


async def read_body(request: Request, *, max_bytes: int, timeout_s: float) -> dict[str, Any]:
    """The fields of a body; an empty one has none. Raises Problem."""
    content = await _content(request, max_bytes=max_bytes, timeout_s=timeout_s)
    kind = request.headers.get("content-type", "")
    media_type = kind.partition(";")[0].strip().lower()
    if media_type == "multipart/form-data":
        return _form(content, kind)
    if not content and not media_type:
        return {}
    if media_type != "application/json":
        raise Problem(415, "unsupported_media_type", "A body is application/json or multipart/form-data.")
    return parse_json(content)


def parse_json(content: bytes) -> dict[str, Any]:
    """An object without doubled keys, NaN or lone surrogates, and not deep. Raises Problem."""
    try:
        found = json.loads(content.decode("utf-8"), object_pairs_hook=_object, parse_constant=_refuse)
        json.dumps(found, ensure_ascii=False).encode("utf-8")
        depth = _depth(found)
    except (ValueError, RecursionError) as error:
        raise Problem(
            400, "invalid_json", "The body is no JSON object: UTF-8, each key once, finite numbers, no lone surrogates."
        ) from error
    if not isinstance(found, dict) or depth > MAX_DEPTH:
        raise Problem(400, "invalid_json", f"The body is a JSON object, at most {MAX_DEPTH} levels deep.")
    return found


def as_value(text: str, kind: type) -> Any:
    """What a field of a form means: its text, or for another type what the text says as JSON, else the text."""
    if kind is str:
        return text
    try:
        return json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return text


async def _content(request: Request, *, max_bytes: int, timeout_s: float) -> bytes:
    announced = request.headers.get("content-length", "0")
    too_large = Problem(
        413, "too_large", f"The body is larger than {max_bytes} bytes.", headers={"Connection": "close"}
    )
    if announced.isdecimal() and int(announced[:20]) > max_bytes:
        raise too_large
    content = bytearray()
    try:
        async with asyncio.timeout(timeout_s):
            async for chunk in request.stream():
                content += chunk
                if len(content) > max_bytes:
                    raise too_large
    except TimeoutError as error:
        message = f"The body did not arrive within {timeout_s:g} seconds."
        raise Problem(408, "timeout", message, headers={"Connection": "close"}) from error
    return bytes(content)


def _object(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands there twice")
    return found


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


def _depth(value: Any) -> int:
    inner = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
    return 1 + max(map(_depth, inner), default=0) if isinstance(value, Mapping | list) else 0


def _form(content: bytes, content_type: str) -> dict[str, Any]:
    """The text fields of a form. A name that ends in [] makes a list."""
    wrong = Problem(400, "invalid_form", "The body is no form of text fields, each name once.")
    match = _BOUNDARY.search(content_type)
    if match is None:
        raise wrong
    mark = b"\r\n--" + (match[1] or match[2]).encode("latin-1", "replace")
    before, *parts = (b"\r\n" + content).split(mark)
    if before.strip() or not parts or len(parts) > MAX_PARTS or not parts[-1].startswith(b"--"):
        raise wrong
    fields: dict[str, Any] = {}
    for part in parts[:-1]:
        head, found, value = part.partition(b"\r\n\r\n")
        name = _PART_NAME.search(head.decode("latin-1"))
        if not found or name is None:
            raise wrong
        if name[2] is not None:
            raise Problem(400, "files_not_supported", "Files are not supported: this model starts from text alone.")
        try:
            text = value.decode("utf-8")
        except UnicodeDecodeError as error:
            raise wrong from error
        if name[1].endswith("[]"):
            fields.setdefault(name[1].removesuffix("[]"), []).append(text)
        elif name[1] in fields:
            raise wrong
        else:
            fields[name[1]] = text
    return fields
