"""Settings that go together, under one name: from exact to quick."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from daifuku.errors import InvalidRequest

EXACT = {"guidance_start_sigma": 1.0, "guidance_end_sigma": 0.0, "guidance_every": 1, "step_cache": "none"}
"""Nothing approximate."""


LORAS = "loras"


@dataclass(frozen=True, kw_only=True)
class Preset:
    """Values for fields of a request, by their names."""

    help: str
    values: Mapping[str, Any]
    steps_share: float | None = None
    """How many of the model's own steps are taken; None when `values` says, or when it stays at the model's."""


Own = Mapping[str, Mapping[str, Any]]
"""What a model says about presets, by their names: fields of a request that it sets otherwise, and under `loras` files
beside it that act in this preset."""


def expanded(name: str, num_inference_steps: int, own: Own = MappingProxyType({})) -> dict[str, Any]:
    """The request fields that a preset sets, on a model with so many steps of its own."""
    preset = PRESETS[name]
    values = dict(preset.values)
    if preset.steps_share is not None:
        values["num_inference_steps"] = max(1, round(num_inference_steps * preset.steps_share))
    return values | {field: value for field, value in own.get(name, {}).items() if field != LORAS}


def preset_for(given: Mapping[str, Any], default: str, own: Own) -> str:
    """The preset of a request that gives these fields, where `default` is the model's.

    A default that brings LoRAs is another model: it gives way to `exact` where the request asks for what it decides, or
    for a negative prompt, which it would not look at.
    """
    if "preset" in given:
        return given["preset"]
    decided = given.keys() & expanded(default, 1, own).keys()
    return "exact" if own.get(default, {}).get(LORAS) and (decided or given.get("negative_prompt")) else default


def without_loras(defaults: Mapping[str, Any]) -> dict[str, Any]:
    """A model's defaults for weights that were trained further: presets with LoRAs, made for the old ones, are gone."""
    own: Own = defaults.get("presets", {})
    kept = {name: values for name, values in own.items() if not values.get(LORAS)}
    left = {name: value for name, value in defaults.items() if name != "presets"} | ({"presets": kept} if kept else {})
    if left.get("preset") in own.keys() - kept.keys():
        del left["preset"]
    return left


def check_heard(given: Mapping[str, Any], preset: Mapping[str, Any]) -> None:
    """Raises InvalidRequest for a negative prompt that has no say, since the preset has no guidance."""
    if given.get("negative_prompt") and "guidance_scale" not in given and preset["guidance_scale"] == 1:
        raise InvalidRequest(
            f"negative_prompt has no say without guidance, and preset={preset['preset']!r} has none on this model. "
            "Try preset='exact', or guidance_scale=2."
        )


PRESETS: Mapping[str, Preset] = {
    "exact": Preset(help="approximates nothing", values=EXACT),
    "balanced": Preset(
        help="is approximate: nearly the same, about 1.5 times as fast",
        values=EXACT | {"step_cache": "first_block", "cache_threshold": 0.03},
        steps_share=0.7,
    ),
    "draft": Preset(
        help="is approximate: a first look, about 4 times as fast",
        values=EXACT | {"step_cache": "first_block", "cache_threshold": 0.05},
        steps_share=0.25,
    ),
    "fast8": Preset(
        help="suits weights that were distilled to 8 steps",
        values=EXACT | {"num_inference_steps": 8, "guidance_scale": 1.5, "threshold_noise": 0.1, "linear_steps": 6},
    ),
}
"""By name, slowest first. Shares and thresholds were chosen on the built-in model, with its own schedule and with the
published one: fewer steps cost the least per step saved, and a cache passes over small steps almost for free."""

PRESETS_HELP = (
    f"How exact, and how fast: {'; '.join(f'{name} {preset.help}' for name, preset in PRESETS.items())}. It sets other "
    "flags; those that are given win."
)
