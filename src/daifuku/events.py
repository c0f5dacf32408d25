"""What a run reports while it goes on, in the order in which it happens.

Tensors and arrays are not named here by type, since this module needs nothing but the standard library.
"""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Planned:
    """How the run will be computed; it comes once more where memory ran out and a smaller plan takes over."""

    plan: Any
    """A `daifuku.runtime.planner.Plan`."""
    record: Any
    """All that decides what the run makes, as a JSON object: the clip's provenance but for its timings."""
    out_of_memory: bool


@dataclass(frozen=True, kw_only=True)
class Notice:
    """Something that who waits for the clip should know, such as how far approximate weights are off."""

    text: str


@dataclass(frozen=True, kw_only=True)
class TextReady:
    """The captions are encoded."""

    num_tokens: int
    """Tokens of the prompt as it was written, the end mark included."""
    max_tokens: int
    cut_text: str
    """The end of the prompt that the model does not see, because it allows `max_tokens` only; mostly empty."""
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Step:
    """One step of the solver is done."""

    index: int
    """1 after the first step, `total` after the last."""
    total: int
    sigma: float
    """The noise level that has been reached: 0 after the last step."""
    seconds: float
    latent: Any
    """Whitened latent at that noise level: a float32 tensor [12, t, h, w] on the device that samples."""
    states: Any
    """What step caches and guidance remember, by name: with index and latent all that it takes to go on from here."""


@dataclass(frozen=True, kw_only=True)
class Preview:
    """What the clip is going to look like, roughly."""

    index: int
    """The step after which it looks so."""
    frames: Any
    """A uint8 array [t, h, w, 3]: a frame for each latent frame, a pixel for each latent cell."""


@dataclass(frozen=True, kw_only=True)
class Frames:
    """The next frames are decoded."""

    start: int
    """Position of the first of them in the clip, from 0."""
    frames: Any
    """A uint8 array [n, height, width, 3]."""
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Done:
    """The clip is complete: nothing follows."""

    video: Any
    """A `daifuku.Video`."""


Event = Planned | Notice | TextReady | Step | Preview | Frames | Done
