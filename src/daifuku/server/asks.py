"""From the fields of a body to the resolved request of a job: `GenerateRequest` says what is allowed."""

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from daifuku.config import TIME_FACTOR
from daifuku.errors import InvalidRequest, ModelNotFound
from daifuku.request import GenerateRequest, ResolvedRequest
from daifuku.request_schema import json_schema
from daifuku.server.bodies import as_value
from daifuku.server.problems import Problem, of_request
from daifuku.values import as_loras, either

REQUEST_FIELDS = {each.name: each for each in fields(GenerateRequest)}
ALIASES = {"steps": "num_inference_steps", "guidance": "guidance_scale"}
"""Short names that the fields of a request also go by."""

OPENAI_FIELDS: Mapping[str, Mapping[str, Any]] = {
    "model": {"type": "string", "description": "A name that /v1/models lists."},
    "size": {"type": "string", "pattern": r"^\d{1,5}x\d{1,5}$", "description": "Width x height, such as 848x480."},
    "seconds": {
        "anyOf": [{"type": "string", "pattern": r"^\d{1,4}(\.\d{1,3})?$"}, {"type": "number"}],
        "description": "Length of the video; the number of frames nearest to it is made.",
    },
}
"""What OpenAI's clients send beside the prompt."""

_SIZE = re.compile(r"(\d{1,5})x(\d{1,5})")
_SECONDS = re.compile(r"\d{1,4}(\.\d{1,3})?")
_LORA_ENDINGS = (".safetensors", ".gguf")


@dataclass(frozen=True, kw_only=True)
class Served:
    """The model that requests are for, and what they may ask of it."""

    name: str
    defaults: Mapping[str, Any]
    loras: Mapping[str, Path]
    max_work: float

    def schema(self) -> dict[str, Any]:
        """JSON Schema of the body of a request."""
        schema = json_schema({**self.defaults, "loras": []})
        del schema["$schema"], schema["title"]
        properties = schema["properties"]
        properties["loras"] |= {"description": "Names of LoRAs of the server, and how strongly each acts."}
        properties |= {short: properties[name] for short, name in ALIASES.items()}
        properties |= OPENAI_FIELDS
        return schema | {"example": {"prompt": "a small red ball bouncing on a gray background", "seed": 7}}


def find_loras(folder: Path | None) -> dict[str, Path]:
    """The LoRAs of a folder by the name that requests call them. Raises ModelNotFound where there is no folder."""
    if folder is None:
        return {}
    if not folder.is_dir():
        raise ModelNotFound(f"there is no folder of LoRAs {folder}.")
    found = sorted(path.absolute() for path in folder.iterdir() if path.suffix in _LORA_ENDINGS and path.is_file())
    return {path.stem: path for path in found}


def from_form(values: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a form, whose values are all texts, as JSON would have them."""
    read: dict[str, Any] = {}
    for name, value in values.items():
        each = REQUEST_FIELDS.get(ALIASES.get(name, name))
        kind = str if each is None else each.metadata["type"]
        read[name] = [as_value(one, kind) for one in value] if isinstance(value, list) else as_value(value, kind)
    return read


def resolved(served: Served, body: Mapping[str, Any], base: Mapping[str, Any] | None = None) -> ResolvedRequest:
    """The request that a body spells out, in full; LoRAs by name. `base` are values of an earlier job, to vary.

    Raises Problem.
    """
    values = _renamed(body)
    if values.pop("model", None) not in (None, served.name):
        raise Problem(404, "model_not_found", f"There is no such model here. Try {served.name!r}.", param="model")
    values |= _size(values.pop("size", None))
    seconds = values.pop("seconds", None)
    # With other steps, an earlier job's share of linear ones is that of its model.
    dropped = {"linear_steps"} if "num_inference_steps" in values else set()
    kept = {name: value for name, value in (base or {}).items() if name not in dropped}
    try:
        request = GenerateRequest.from_dict({**kept, **values})
        request = _with_length(request, seconds, values, served)
        found = request.resolved({**served.defaults, "loras": ()})
        _check_loras(found, served)
    except InvalidRequest as error:
        raise of_request(error, body) from error
    work = found.width * found.height * found.num_frames * found.num_inference_steps
    if work > served.max_work:
        most = int(served.max_work / (found.width * found.height * found.num_inference_steps))
        most = (most - 1) // TIME_FACTOR * TIME_FACTOR + 1
        hint = f"num_frames={most}" if most >= 1 else "a smaller picture or fewer steps"
        raise Problem(
            400,
            "too_much_work",
            f"width x height x num_frames x num_inference_steps is {work:.2g}, more than {served.max_work:.2g}. "
            f"Try {hint}.",
            param="num_frames",
        )
    return found


def _renamed(body: Mapping[str, Any]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    known = [*REQUEST_FIELDS, *ALIASES, *OPENAI_FIELDS]
    for name, value in body.items():
        full = ALIASES.get(name, name)
        if full not in known:
            near = difflib.get_close_matches(name, known, n=2) or known
            raise Problem(400, "unknown_field", f"There is a field that a request does not have. Try {either(near)}.")
        if full in values:
            raise Problem(400, "invalid_value", f"{full} stands there twice, under two names.", param=full)
        values[full] = value
    if "size" in values and {"width", "height"} & values.keys():
        raise Problem(400, "invalid_value", "size says what width and height say. Try one of them.", param="size")
    if "seconds" in values and "num_frames" in values:
        raise Problem(400, "invalid_value", "seconds says what num_frames says. Try one of them.", param="seconds")
    return values


def _size(size: Any) -> dict[str, int]:
    if size is None:
        return {}
    match = _SIZE.fullmatch(size) if isinstance(size, str) else None
    if match is None:
        raise Problem(400, "invalid_value", "size is width x height in pixels. Try '848x480'.", param="size")
    return {"width": int(match[1]), "height": int(match[2])}


def _with_length(request: GenerateRequest, seconds: Any, values: Mapping[str, Any], served: Served) -> GenerateRequest:
    """With the number of frames nearest to so many seconds."""
    if seconds is None:
        return request
    text = str(seconds) if isinstance(seconds, str | int | float) and not isinstance(seconds, bool) else ""
    if not _SECONDS.fullmatch(text) or float(text) == 0:
        raise Problem(400, "invalid_value", "seconds is a length above 0. Try '4'.", param="seconds")
    fps = request.resolved({**served.defaults, "loras": ()}).fps
    num_frames = round((float(text) * fps - 1) / TIME_FACTOR) * TIME_FACTOR + 1
    return GenerateRequest.from_dict({**request.to_dict(), "num_frames": max(1, num_frames)})


def _check_loras(request: ResolvedRequest, served: Served) -> None:
    for name, _ in as_loras("loras", request.loras):
        if name not in served.loras:
            names = [repr(one) for one in difflib.get_close_matches(name, served.loras) or list(served.loras)[:5]]
            hint = f"Try {either(names)}." if names else "This server has none."
            raise Problem(400, "unknown_lora", f"loras names a LoRA that is not here. {hint}", param="loras")
