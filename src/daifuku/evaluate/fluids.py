"""Reads a fluid-like motion off a clip: which it is, its looks, and the number its law is known by.

Pools and grass cover the floor, a pool as one level plane; smoke starts just above the floor and a flag stops well
above it. What looks like one of them must also move like it, or its motion is None.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float

from daifuku.evaluate.fluid_laws import Found, read_flag, read_grass, read_smoke, read_splash
from daifuku.evaluate.pace import read_pace
from daifuku.evaluate.pixels import VISIBLE_DIFFERENCE, Cover, Frames, View, cielab, flicker, inner, look
from daifuku.world.factors import COLOURS, FLUID_SIZES
from daifuku.world.render import tether_colour

SHADES = np.arange(0.45, 1.5, 0.1)
"""Brightness of folds, blades and waves, as shares of their colour's; what is above 1 is a share of white."""

NUM_PIXELS = 4000
"""About so many vote for the colour."""

LEAST_SHARE = 0.01
"""Of a clip's pixels that must be covered for anything to be told."""


@dataclass(frozen=True, kw_only=True)
class FluidReading:
    """What a clip shows, as far as its pixels tell; None where nothing could be told."""

    background: str
    colour: str | None = None
    motion: str | None = None
    size: str | None = None
    direction: str | None = None
    """`left`, `right`, or None for what goes straight."""
    pace: str | None = None
    """`slow` or `fast`, where it is one of those."""
    law: float | None = None
    """Of a splash the drop's gravity, of smoke the speed it rises at, of flags and grass the frequency in Hz."""
    flicker: float
    """Mean change of background pixels from frame to frame, in 1/255."""


def read_fluid(frames: Frames, *, fps: int = 20) -> FluidReading:
    """Read background, fluid and law off a clip."""
    view = look(frames)
    empty = FluidReading(background=view.background, flicker=flicker(view))
    colour = _colour(view)
    if colour is None:
        return empty
    cover = _solid(view, colour)
    motion = _looks_like(cover)
    found = READERS[motion](view, cover, np.array(COLOURS[colour]), fps) if motion else None
    if motion is None or found is None:
        return replace(empty, colour=colour)
    sizes = FLUID_SIZES[motion]
    return replace(
        empty,
        colour=colour,
        motion=motion,
        size=min(sizes, key=lambda size: abs(np.log(sizes[size] / found.size))),
        direction=found.direction,
        pace=read_pace(motion, found.law),
        law=found.law,
    )


def _colour(view: View) -> str | None:
    """The palette's colour of which most of the foreground is a shade."""
    pixels = view.lab[inner(view.difference > VISIBLE_DIFFERENCE)]
    if len(pixels) < LEAST_SHARE * view.difference.size:
        return None
    pixels = pixels[:: len(pixels) // NUM_PIXELS + 1]
    away = np.stack([_away(pixels, _shades(name)) for name in COLOURS], axis=1)
    away = away[away.min(axis=1) < _away(pixels, _inks(view))]
    votes = (1 / (10 + away.min(axis=1)) ** 2) @ (away == away.min(axis=1, keepdims=True))
    return tuple(COLOURS)[int(votes.argmax())] if len(away) else None


def _solid(view: View, colour: str) -> Cover:
    """Where the fluid is, whatever its shade: 1 within, 0 outside and on poles, between on outlines."""
    away = _away(view.lab, _shades(colour))
    share = view.difference / np.maximum(view.difference + away, 1e-6)
    share[_away(view.lab, _inks(view)) < away] = 0
    seen = np.clip(2 * view.difference / VISIBLE_DIFFERENCE - 1, 0, 1)
    return np.clip((share - 0.2) / 0.6, 0, 1) * seen


def _shades(colour: str) -> Float[np.ndarray, "shades 3"]:
    """The colour in shadow and in light, in CIELAB."""
    paint = np.array(COLOURS[colour])
    dark = np.minimum(SHADES, 1)[:, None] * paint
    return cielab((dark + np.maximum(SHADES - 1, 0)[:, None] * (255 - paint)).round().astype(np.uint8))


def _inks(view: View) -> Float[np.ndarray, "shades 3"]:
    """The colour of poles, and of their smooth outlines, in CIELAB."""
    ink = np.array(tether_colour(view.background)) - view.ground
    return cielab((view.ground + np.array([0.3, 0.5, 0.7, 1])[:, None] * ink).round().astype(np.uint8))


def _away(
    pixels: Float[np.ndarray, "*pixels 3"], shades: Float[np.ndarray, "shades 3"]
) -> Float[np.ndarray, "*pixels"]:
    """CIELAB distance from the nearest of the shades."""
    # |a - b|^2 = |a|^2 - 2 a b + |b|^2 takes a tenth of the time of the differences themselves.
    squares = (shades**2).sum(axis=1) - 2 * pixels @ shades.T
    return np.sqrt(np.maximum(squares.min(axis=-1) + (pixels**2).sum(axis=-1), 0))


def _looks_like(cover: Cover) -> str | None:
    """The fluid that the clip looks like, still or moving."""
    side = cover.shape[1]
    if cover.mean() < LEAST_SHARE:
        return None
    early = cover[: max(len(cover) // 4, 1)].mean(axis=0)
    if early[round(0.95 * side) :].mean() > 0.6:
        rows = early.mean(axis=1)
        between = ((rows > 0.25) & (rows < 0.75)).sum()
        return "splash" if between <= 0.045 * side else "grass"
    lowest = np.flatnonzero(early.max(axis=1) > 0.5).max(initial=0) / side
    return "smoke" if lowest > 0.87 else "flag"


READERS: dict[str, Callable[..., Found | None]] = {
    "splash": read_splash,
    "smoke": read_smoke,
    "flag": read_flag,
    "grass": read_grass,
}
