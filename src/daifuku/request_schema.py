"""What a request may say, as JSON Schema: for the API and for web forms."""

from collections.abc import Mapping
from dataclasses import Field, fields
from typing import Any

from daifuku.presets import PRESETS
from daifuku.request import GenerateRequest, choices, starting_values
from daifuku.values import LORA_SCHEMA, as_json

SET = "x-set"
"""The keyword of the schema of `preset` that tells the steps and the guidance that each choice brings."""


def json_schema(defaults: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """JSON Schema (2020-12) of `GenerateRequest.to_dict`, with a model's defaults or else the published model's."""
    own = starting_values({}, defaults or {})
    properties = {each.name: _property(each, own.get(each.name)) for each in fields(GenerateRequest)}
    properties["preset"][SET] = {name: _set(name, defaults or {}) for name in PRESETS}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "GenerateRequest",
        "type": "object",
        "properties": properties,
        "required": ["prompt"],
        "additionalProperties": False,
    }


def _set(preset: str, defaults: Mapping[str, Any]) -> dict[str, Any]:
    values = starting_values({"preset": preset}, defaults)
    return {name: as_json(values[name]) for name in ("num_inference_steps", "guidance_scale")}


def _property(each: Field[Any], default: object) -> dict[str, Any]:
    about = each.metadata
    known = {"description": about["help"]}
    if default is not None:
        known["default"] = as_json(default)
    if about["type"] is tuple:
        return known | {"type": "array", "items": LORA_SCHEMA}
    if about["type"] is str:
        allowed = choices(each)
        limits = {"maxLength": about["max_length"]} if allowed is None else {"enum": list(allowed)}
        return known | {"type": "string"} | limits
    number = {"type": "integer" if about["type"] is int else "number", "minimum": about["min"], "maximum": about["max"]}
    if about["per_step"]:
        return known | {"anyOf": [number, {"type": "array", "items": number, "minItems": 1}]}
    if about["step"] and about["min"] % about["step"] == 0:
        number["multipleOf"] = about["step"]
    return known | number
