"""The one list of parameters: command-line flags, JSON schema and web form derive from the fields of `GenerateRequest`.

The `metadata` of a field says: `help`; `type` (str, int, float or tuple); `default`, the published model's;
`placeholder`, what a usage line calls the value. Numbers have `min`, `max` and `step` (allowed are min, min + step, ...
up to max; None: everything between) and `per_step`, whether a list with one number per step is allowed too. Texts have
`max_length` and `choices`, a function that gives those there are (None: any text). A list of LoRAs has the type tuple
and a `flag`, which gives one of them.
"""

import difflib
import math
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import Field, dataclass, field, fields
from typing import TYPE_CHECKING, Any, no_type_check

from daifuku.config import PATCH, SPACE_FACTOR, TIME_FACTOR, DiTConfig
from daifuku.errors import CheckpointError, InvalidRequest
from daifuku.presets import PRESETS, PRESETS_HELP, check_heard, expanded, preset_for
from daifuku.registry import names
from daifuku.values import Loras, as_json, as_loras, as_real, as_whole, either, shown

SOLVERS = "daifuku.sample.solvers"
"""The package whose plugins are the solvers."""

STEP_CACHES = "daifuku.runtime.step_cache"
"""The package whose plugins are the step caches."""

NO_STEP_CACHE = "none"

Number = int | float

RANDOM_SEEDS = 2**32

Choices = Callable[[], tuple[str, ...]]


def _about_text(help: str, default: str | None = None, choices: Choices | None = None) -> dict[str, Any]:
    about = {"help": help, "type": str, "default": default, "placeholder": "TEXT" if choices is None else "NAME"}
    return about | {"max_length": 10_000, "choices": choices}


def _text(default: str, help: str, choices: Choices | None = None) -> Any:
    return field(default=None, metadata=_about_text(help, default, choices))


def _number(
    default: Number | None,
    placeholder: str,
    low: Number,
    high: Number,
    help: str,
    *,
    step: int | None = None,
    per_step: bool = False,
) -> Any:
    about = {"help": help, "type": type(low), "default": default, "placeholder": placeholder}
    return field(default=None, metadata=about | {"min": low, "max": high, "step": step, "per_step": per_step})


# Whatever a user writes arrives here: a wrong kind of value is answered by InvalidRequest, not by a type checker.
@no_type_check
@dataclass(frozen=True, kw_only=True)
class GenerateRequest:
    """What to generate. A field left None means the model's own default. A wrong value raises InvalidRequest."""

    prompt: str = field(metadata=_about_text("What the video shows."))
    negative_prompt: str | None = _text("", "What to steer away from.")
    height: int | None = _number(480, "PIXELS", 16, 2048, "Height of the video.", step=SPACE_FACTOR * PATCH)
    width: int | None = _number(848, "PIXELS", 16, 2048, "Width of the video.", step=SPACE_FACTOR * PATCH)
    num_frames: int | None = _number(163, "FRAMES", 1, 1201, "Length of the video.", step=TIME_FACTOR)
    preset: str | None = _text("exact", PRESETS_HELP, lambda: tuple(PRESETS))
    num_inference_steps: int | None = _number(64, "STEPS", 1, 1000, "More steps take longer and look finer.")
    guidance_scale: Number | Sequence[Number] | None = _number(
        6.0, "SCALE", 0.0, 100.0, "How closely to follow the prompt; a step at 1 takes half the time.", per_step=True
    )
    seed: int | None = _number(
        None, "SEED", 0, 2**63 - 1, "The same seed gives the same video; without one, it is drawn and recorded."
    )
    fps: int | None = _number(30, "FPS", 1, 120, "Frames per second of the file.")
    solver: str | None = _text("euler", "How to get from noise to a video.", lambda: names(SOLVERS))
    threshold_noise: float | None = _number(
        0.025, "SHARE", 0.001, 0.99, "How much of the noise the small steps at the start take away."
    )
    linear_steps: int | None = _number(
        None, "STEPS", 0, 999, "How many small, equal steps to start with; half of all steps when not given."
    )
    guidance_start_sigma: float | None = _number(
        1.0, "SIGMA", 0.0, 1.0, "Guidance sets in at this noise level (1 noise, 0 clean)."
    )
    guidance_end_sigma: float | None = _number(
        0.0, "SIGMA", 0.0, 1.0, "Guidance ends below this noise level; steps without guidance take half the time."
    )
    guidance_every: int | None = _number(
        1, "N", 1, 1000, "Ask the negative prompt at every Nth guided step only: approximate, and faster, above 1."
    )
    step_cache: str | None = _text(
        NO_STEP_CACHE,
        "Take over most of a step from the one before when little changes: approximate, and faster.",
        lambda: (NO_STEP_CACHE, *names(STEP_CACHES)),
    )
    cache_threshold: float | None = _number(
        0.06, "CHANGE", 0.0, 1.0, "How large a change the step cache ignores: 0 is exact, more is faster and coarser."
    )
    loras: Sequence[Any] | None = field(
        default=None,
        metadata={
            "help": "A LoRA file and how strongly it acts; several act together.",
            "type": tuple,
            "default": (),
            "placeholder": "FILE[:STRENGTH]",
            "flag": "--lora",
        },
    )

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            if value is not None or each.name == "prompt":
                object.__setattr__(self, each.name, _checked(each, value))
        _check_guidance(self)
        _check_schedule(self.num_inference_steps, self.linear_steps, self.threshold_noise)

    def resolved(self, defaults: Mapping[str, Any] | None = None) -> "ResolvedRequest":
        """Every field filled in: from its preset, else from the model's `defaults`, else from the published model's.

        Keys of `defaults` that are no fields are passed over. Linear steps keep the default's share of all steps.
        Raises CheckpointError when the defaults are wrong in themselves, InvalidRequest when they do not go together
        with this request.
        """
        given = self._given()
        values = _changed(starting_values(given, defaults or {}), given)
        if values["seed"] is None:
            values["seed"] = secrets.randbelow(RANDOM_SEEDS)
        if values["linear_steps"] is None:
            values["linear_steps"] = values["num_inference_steps"] // 2
        return ResolvedRequest(**values)

    def to_dict(self) -> dict[str, Any]:
        """Only what JSON knows; fields left None are left out."""
        return {name: as_json(value) for name, value in self._given().items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "GenerateRequest":
        """The inverse of `to_dict`. Raises InvalidRequest for a key that is no field, naming the nearest."""
        known = [each.name for each in fields(cls)]
        for key in values:
            if key not in known:
                near = [name for name in known if str(key) in name] or difflib.get_close_matches(str(key), known)
                raise InvalidRequest(f"a request has no field {shown(key)}. Try {either(near or known)}.")
        if "prompt" not in values:
            raise InvalidRequest('a request needs a prompt. Try {"prompt": "a small red ball bouncing"}.')
        return GenerateRequest(**values)

    def _given(self) -> dict[str, Any]:
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        return {name: value for name, value in values.items() if value is not None}


class ResolvedRequest(GenerateRequest):
    """A request in which nothing is left None."""

    if TYPE_CHECKING:
        negative_prompt: str
        height: int
        width: int
        num_frames: int
        preset: str
        num_inference_steps: int
        guidance_scale: float | tuple[float, ...]
        seed: int
        fps: int
        solver: str
        threshold_noise: float
        linear_steps: int
        guidance_start_sigma: float
        guidance_end_sigma: float
        guidance_every: int
        step_cache: str
        cache_threshold: float
        loras: Loras

    @property
    def guidance_scales(self) -> tuple[float, ...]:
        """One guidance scale for each step."""
        one = self.guidance_scale
        return one if isinstance(one, tuple) else (one,) * self.num_inference_steps

    @property
    def captions(self) -> tuple[str, ...]:
        """The prompt, and the negative prompt where any step listens to it."""
        guided = any(scale != 1 for scale in self.guidance_scales)
        return (self.prompt, self.negative_prompt) if guided else (self.prompt,)

    @property
    def latent_shape(self) -> "LatentShape":
        return LatentShape.from_pixels(self.num_frames, self.height, self.width)


@dataclass(frozen=True, kw_only=True)
class LatentShape:
    """Size of a latent, and what it means in pixels and in tokens."""

    frames: int
    height: int
    width: int
    channels: int = DiTConfig.latent_channels

    @classmethod
    def from_pixels(cls, num_frames: int, height: int, width: int) -> "LatentShape":
        """The latent of a video of that size. Raises InvalidRequest for a size that no latent has."""
        GenerateRequest(prompt="", num_frames=num_frames, height=height, width=width)
        return cls(frames=num_frames // TIME_FACTOR + 1, height=height // SPACE_FACTOR, width=width // SPACE_FACTOR)

    @property
    def num_frames(self) -> int:
        """Frames of the decoded video."""
        return (self.frames - 1) * TIME_FACTOR + 1

    @property
    def as_tuple(self) -> tuple[int, int, int, int]:
        """[channels, frames, height, width], as tensors have it."""
        return self.channels, self.frames, self.height, self.width

    @property
    def pixel_height(self) -> int:
        return self.height * SPACE_FACTOR

    @property
    def pixel_width(self) -> int:
        return self.width * SPACE_FACTOR

    @property
    def num_tokens(self) -> int:
        """Video tokens that the transformer attends over."""
        return self.frames * (self.height // PATCH) * (self.width // PATCH)


def choices(each: Field[Any]) -> tuple[str, ...] | None:
    """The texts that a field allows; None when it allows any, or takes no text."""
    return None if (find := each.metadata.get("choices")) is None else find()


def starting_values(given: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """What a request that gives these fields starts from: a model's defaults, changed by the preset."""
    own, presets = _complete(defaults), defaults.get("presets", {})
    preset = preset_for(given, own["preset"], presets)
    values = _changed(own, expanded(preset, own["num_inference_steps"], presets)) | {"preset": preset}
    check_heard(given, values)
    return values


def _complete(defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The default of every field but the prompt, with the linear steps and the seed perhaps None."""
    optional = [each for each in fields(GenerateRequest) if each.name != "prompt"]
    values = {each.name: each.metadata["default"] for each in optional}
    values |= {name: defaults[name] for name in values if defaults.get(name) is not None}
    try:
        own = GenerateRequest(prompt="", **values)
        for name, changes in defaults.get("presets", {}).items():
            GenerateRequest(**{"prompt": "", "preset": name, **changes})
    except (InvalidRequest, TypeError, AttributeError) as error:
        raise CheckpointError(f"the model's own defaults do not fit: {error}") from error
    return {name: getattr(own, name) for name in values}


def _changed(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """With other steps, the linear ones keep their share, unless they change as well."""
    changed = {**values, **changes}
    if (linear := values["linear_steps"]) is not None and "linear_steps" not in changes:
        changed["linear_steps"] = changed["num_inference_steps"] * linear // values["num_inference_steps"]
    return changed


def _checked(each: Field[Any], value: Any) -> Any:
    if each.metadata["type"] is str:
        return _checked_text(each, value)
    if each.metadata["type"] is tuple:
        return as_loras(each.name, value)
    if each.metadata["per_step"] and isinstance(value, list | tuple):
        return tuple(_checked_number(each, one, f"{each.name}[{i}]") for i, one in enumerate(value))
    return _checked_number(each, value, each.name)


def _checked_text(each: Field[Any], value: Any) -> str:
    about, allowed = each.metadata, choices(each)
    if not isinstance(value, str):
        raise InvalidRequest(
            f"{each.name}={shown(value)} is not a text. Try {shown(about['default'] or 'a red ball')}."
        )
    if allowed is not None and value not in allowed:
        near = difflib.get_close_matches(value, allowed, n=1) or allowed
        raise InvalidRequest(
            f"{each.name}={shown(value)} is unknown: the choices are {', '.join(allowed)}. Try {either(near)}."
        )
    if len(value) > about["max_length"]:
        raise InvalidRequest(
            f"{each.name} has {len(value)} characters; at most {about['max_length']} work. Try a shorter one."
        )
    if "\0" in value:
        raise InvalidRequest(f"{each.name}={shown(value)} contains a NUL character. Try it without.")
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise InvalidRequest(
            f"{each.name}={shown(value)} contains half a character (a lone surrogate). Try it without."
        )
    return value


def _checked_number(each: Field[Any], value: Any, name: str) -> Number:
    low, high, step = each.metadata["min"], each.metadata["max"], each.metadata["step"]
    number = as_whole(value) if each.metadata["type"] is int else as_real(value)
    if number is None:
        kind = "a whole number" if each.metadata["type"] is int else "a finite number"
        default = each.metadata["default"]
        raise InvalidRequest(f"{name}={shown(value)} is not {kind}. Try {low if default is None else default}.")
    if not low <= number <= high:
        raise InvalidRequest(
            f"{name}={shown(value)} is out of range: from {low} to {high} works. Try {low if number < low else high}."
        )
    if step is not None and (number - low) % step:
        below = number - (number - low) % step
        rule = f"a multiple of {step}" if low % step == 0 else f"{step}k+{low}"
        raise InvalidRequest(f"{name}={number} does not fit: it must be {rule}. Try {below} or {below + step}.")
    return number


def _check_guidance(asked: GenerateRequest) -> None:
    scale, num_steps = asked.guidance_scale, asked.num_inference_steps
    start, end = asked.guidance_start_sigma, asked.guidance_end_sigma
    if isinstance(scale, tuple) and not scale:
        raise InvalidRequest("guidance_scale is an empty list. Try one number, or one for each step.")
    if isinstance(scale, tuple) and num_steps is not None and len(scale) != num_steps:
        raise InvalidRequest(
            f"guidance_scale has {len(scale)} values for {num_steps} steps. "
            f"Try {num_steps} values, a single one, or num_inference_steps={len(scale)}."
        )
    if start is not None and end is not None and end > start:
        raise InvalidRequest(
            f"guidance_start_sigma={start} is below guidance_end_sigma={end}, and a run goes from sigma 1 down to 0. "
            f"Try guidance_start_sigma={end}, guidance_end_sigma={start}."
        )


def _check_schedule(num_steps: int | None, linear_steps: int | None, threshold_noise: float | None) -> None:
    """Some steps must follow the linear ones, and each of those must go down (see `sample/schedule.py`)."""
    if num_steps is None or linear_steps is None:
        return
    if linear_steps >= num_steps:
        raise InvalidRequest(
            f"linear_steps={linear_steps} leaves nothing of {num_steps} steps for the rest of the way. "
            f"Try {num_steps // 2}, or at most {num_steps - 1}."
        )
    if threshold_noise is None:
        return
    rest = num_steps - linear_steps
    last = (2 * rest - 1) / rest**2
    steepness = num_steps * last - 1
    if linear_steps > 0 and steepness > 0 and threshold_noise * steepness >= last * linear_steps:
        limit = (math.ceil(1000 * last * linear_steps / steepness) - 1) / 1000
        raise InvalidRequest(
            f"threshold_noise={threshold_noise} is too much for {linear_steps} linear steps of {num_steps}: "
            f"the rest would overshoot. Try {limit} or less."
        )
