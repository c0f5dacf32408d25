"""What the form offers and what it asks for: only values that a request can have."""

import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from daifuku.config import PATCH, SPACE_FACTOR, TIME_FACTOR
from daifuku.presets import PRESETS
from daifuku.request import RANDOM_SEEDS, Number
from daifuku.request_schema import SET
from daifuku.studio.client import Model, Video

STEP_PIXELS = SPACE_FACTOR * PATCH
"""Widths and heights are multiples of it."""

CUSTOM = "custom"
"""The choice of a size that is not in the list."""

MAX_SIDE = 2048
MAX_DIGITS = 40
"""Of a seed; the API says which of them are too large."""

LONGER = 4
"""How many times the model's own length the slider reaches."""


@dataclass(frozen=True, kw_only=True)
class Form:
    """What stands in the form. Its order is that of the page's components."""

    prompt: str = ""
    negative_prompt: str = ""
    width: int = 848
    height: int = 480
    num_frames: int = 163
    fps: int = 30
    preset: str = "exact"
    steps: int | None = 64
    guidance: Number | None = 6.0
    seed: str = ""
    """A text, because a browser's numbers do not hold every seed; empty: a new one is drawn."""
    loras: tuple[str, ...] = ()
    strength: Number = 1.0
    """Of every LoRA."""

    def body(self) -> dict[str, Any]:
        """Of POST /v1/videos. What the form leaves empty is left to the preset and the model."""
        values = asdict(self)
        loras, strength, seed = values.pop("loras"), values.pop("strength"), values.pop("seed")
        values["loras"] = [[name, strength] for name in loras]
        if seed:
            values["seed"] = int(seed) if seed.isascii() and seed.isdigit() and len(seed) < MAX_DIGITS else seed
        return {name: value for name, value in values.items() if value is not None and value != []}


def own_form(model: Model) -> Form:
    """With the model's own values."""
    own: dict[str, Any] = {name: about.get("default") for name, about in model.fields.items()}
    return Form(
        negative_prompt=own["negative_prompt"] or "",
        width=own["width"],
        height=own["height"],
        num_frames=own["num_frames"],
        fps=own["fps"],
        preset=own["preset"],
        steps=own["num_inference_steps"],
        guidance=one_number(own["guidance_scale"]),
    )


def form_of(video: Video) -> Form:
    """The form that would ask for a video again, with its seed."""
    loras = [one if isinstance(one, list | tuple) else (one, 1.0) for one in video["loras"]]
    return Form(
        prompt=video["prompt"],
        negative_prompt=video["negative_prompt"],
        width=video["width"],
        height=video["height"],
        num_frames=video["num_frames"],
        fps=video["fps"],
        preset=video["preset"],
        steps=video["num_inference_steps"],
        guidance=one_number(video["guidance_scale"]),
        seed=str(video["seed"]),
        loras=tuple(name for name, _ in loras),
        strength=loras[0][1] if loras else 1.0,
    )


def one_number(scale: Any) -> Number:
    """A guidance scale; of one for each step, the first that guides."""
    if isinstance(scale, list | tuple):
        return next((each for each in scale if each != 1), scale[0])
    return scale


def preset_values(name: str, model: Model) -> tuple[int, Number]:
    """Steps and guidance that a preset stands for."""
    brought = model.fields["preset"][SET][name]
    return brought["num_inference_steps"], one_number(brought["guidance_scale"])


def preset_help(name: str) -> str:
    """What a preset does, in a sentence."""
    return f"{name.capitalize()} {PRESETS[name].help}." if name in PRESETS else ""


def sizes(width: int, height: int) -> list[tuple[str, str]]:
    """Sizes of about as many pixels as the model's own, as (what it is called, value)."""
    side = _near((width * height) ** 0.5)
    found = {(width, height): "own", (height, width): "turned", (side, side): "square"}
    half = (_near(width / 2), _near(height / 2))
    found.setdefault(half, "half")
    named = [(f"{w} x {h} · {_shape(w, h)}", f"{w}x{h}") for w, h in found]
    return [*named, ("Another size", CUSTOM)]


def chosen_size(choice: str, width: int, height: int) -> tuple[int, int]:
    """Width and height of a choice of `sizes`; of another size, those of the sliders."""
    if choice == CUSTOM:
        return width, height
    across, _, down = choice.partition("x")
    return int(across), int(down)


def longest(num_frames: int) -> int:
    """Frames that the slider goes up to, for a model of that length."""
    return (num_frames - 1) // TIME_FACTOR * TIME_FACTOR * LONGER + 1


def varied() -> dict[str, Any]:
    """What makes another video of the same request."""
    return {"seed": secrets.randbelow(RANDOM_SEEDS)}


def from_values(values: Mapping[str, Any]) -> Form:
    """From what the components hold; their numbers are sometimes 7.0."""
    size = chosen_size(values["size"], _whole(values["width"]) or 0, _whole(values["height"]) or 0)
    return Form(
        prompt=values["prompt"] or "",
        negative_prompt=values["negative_prompt"] or "",
        width=size[0],
        height=size[1],
        num_frames=_whole(values["num_frames"]) or 1,
        fps=_whole(values["fps"]) or 1,
        preset=values["preset"],
        steps=_whole(values["steps"]),
        guidance=values["guidance"],
        seed=(values["seed"] or "").strip(),
        loras=tuple(values["loras"] or ()),
        strength=1.0 if values["strength"] is None else values["strength"],
    )


def _whole(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _near(pixels: float) -> int:
    return max(STEP_PIXELS, round(pixels / STEP_PIXELS) * STEP_PIXELS)


def _shape(width: int, height: int) -> str:
    return "square" if width == height else "wide" if width > height else "tall"
