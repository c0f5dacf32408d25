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
from daifuku.evaluate.pixels import Cover, Frames, View, cielab, flicker, inner, look, VISIBLE_DIFFERENCE
from daifuku.world.factors import COLOURS, FLUID_SIZES
from daifuku.world.render import tether_colour

SHADES = np.linspace(0.45, 1, 8)
"""Brightness of folds, blades and waves, as shares of their colour's."""

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
    motion = _looks_like(_solid(view, colour))
    found = READERS[motion](view, _solid(view, colour), np.array(COLOURS[colour]), fps) if motion else None
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
    ink = np.array(tether_colour(view.background), np.uint8)
    pixels = view.frames[inner(view.difference > VISIBLE_DIFFERENCE)]
    if len(pixels) < LEAST_SHARE * view.difference.size:
        return None
    pixels = cielab(pixels[:: max(len(pixels) // 4000, 1)])
    shades = cielab((np.array(list(COLOURS.values()))[:, None] * SHADES[:, None]).round().astype(np.uint8))
    away = np.linalg.norm(pixels[:, None, None] - shades, axis=-1).min(axis=2)
    off_ink = np.linalg.norm(pixels - cielab(ink), axis=-1)
    away = away[away.min(axis=1) < off_ink]
    if len(away) == 0:
        return None
    votes = np.bincount(away.argmin(axis=1), weights=1 / (10 + away.min(axis=1)) ** 2, minlength=len(COLOURS))
    return tuple(COLOURS)[int(votes.argmax())]


def _solid(view: View, colour: str) -> Cover:
    """Where the fluid is, whatever its shade: 1 within, 0 outside and on poles, between on outlines."""
    shades = cielab((np.array(COLOURS[colour]) * SHADES[:, None]).round().astype(np.uint8))
    reach = min(np.linalg.norm(shades - cielab(view.ground), axis=-1))
    return 0


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
