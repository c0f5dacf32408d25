"""Settings that go together, under one name: from exact to quick."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

EXACT = {"guidance_start_sigma": 1.0, "guidance_end_sigma": 0.0, "guidance_every": 1, "step_cache": "none"}
"""Nothing approximate."""


@dataclass(frozen=True, kw_only=True)
class Preset:
    """Values for fields of a request, by their names."""

    help: str
    values: Mapping[str, Any]
    steps_share: float | None = None
    """How many of the model's own steps are taken; None when `values` says, or when it stays at the model's."""


def expanded(name: str, num_inference_steps: int) -> dict[str, Any]:
    """The request fields that a preset sets, on a model with so many steps of its own."""
    preset = PRESETS[name]
    if preset.steps_share is None:
        return dict(preset.values)
    return {**preset.values, "num_inference_steps": max(1, round(num_inference_steps * preset.steps_share))}


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
