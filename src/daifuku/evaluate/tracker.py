"""Reads a clip of the world back from its pixels: classical vision, no networks.

The background is the usual colour of the border; the object is what lies on the straight line in colour space from the
background to one colour of the palette; its shape is the best overlap with the world's own outlines.
"""

from dataclasses import dataclass, replace
from functools import cache

import numpy as np
from jaxtyping import Float

from daifuku.evaluate.laws import explain
from daifuku.evaluate.pace import read_pace
from daifuku.evaluate.pixels import Cover, Frames, along_line, centres_of, flicker, look, paints, touches_border
from daifuku.evaluate.turning import turn_rate
from daifuku.world.factors import SHAPES, SIZES
from daifuku.world.render import tether_colour
from daifuku.world.shapes import AREA, REACH, SIGNED_DISTANCE

Picture = Float[np.ndarray, "high wide ..."]
Patch = Float[np.ndarray, "y x ..."]

LEAST_AREA = 0.35
"""Share of the smallest object's area that must be visible for a frame to show an object."""

PATCH_SIZE = 31
PATCH_REACH = 1.0
"""Half the side of the square that is compared with the templates, in square roots of the object's area."""

NUM_COMPARED = 12
"""Frames, spread over the clip, whose shape is compared with the templates."""

TURNING = 0.017
"""Change over time within a still object, as a share of its contrast, from which it counts as turning."""


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What a clip shows, as far as its pixels tell; None where nothing could be told."""

    background: str
    colour: str | None
    shape: str | None
    size: str | None
    motion: str | None
    track: Float[np.ndarray, "t 2"]
    """Centre of the object in pixels, x first; NaN where it is not wholly in the picture."""
    gravity: float | None
    """Fitted acceleration in picture sides per second squared, for motions under gravity."""
    area_variation: float | None
    """Standard deviation of the object's area over its mean, while it is wholly in the picture."""
    pace: str | None = None
    """`slow` or `fast`, where the motion has a free speed and it is one of those."""
    flicker: float
    """Mean change of background pixels from frame to frame, in 1/255."""


def read(frames: Frames, *, fps: int = 20) -> Reading:
    """Read background, object and motion off a clip of one object."""
    view = look(frames)
    empty = Reading(
        background=view.background,
        colour=None,
        shape=None,
        size=None,
        motion=None,
        track=np.full((len(frames), 2), np.nan),
        gravity=None,
        area_variation=None,
        flicker=flicker(view),
    )
    side = frames.shape[1]
    found = paints(view)
    if not found:
        return empty
    paint, ground = found[0].rgb, view.ground
    ink = np.array(tether_colour(empty.background))
    cover = _cover(frames, ground, paint, ink, reach=1.1 * max(REACH.values()) * max(SIZES.values()) * side)
    area = cover.sum(axis=(1, 2))
    shown = area > LEAST_AREA * min(AREA.values()) * (min(SIZES.values()) * side) ** 2
    if not shown.any():
        return replace(empty, colour=found[0].name)
    whole = shown & ~touches_border(cover)
    trusted = whole if whole.sum() >= 5 else shown
    centres = centres_of(cover)
    shape = _shape(cover, centres, area, trusted)
    radius = float(np.sqrt(np.median(area[trusted]) / AREA[shape])) / side
    time = np.flatnonzero(trusted) / fps
    law = explain(time, centres[trusted] / side)
    motion, free = (law.motion, law.free) if law else (None, None)
    contrast = np.linalg.norm(paint - ground)
    if motion == "rest" and _turning(frames[trusted], centres[trusted], radius * side) > TURNING * contrast:
        middle = np.median(centres[trusted], axis=0)
        motion, free = "spin", abs(turn_rate(frames[trusted], time, middle, radius * side))
    return replace(
        empty,
        colour=found[0].name,
        shape=shape,
        size=min(SIZES, key=lambda size: abs(np.log(SIZES[size] / radius))),
        motion=motion,
        track=np.where(trusted[:, None], centres, np.nan),
        gravity=law and law.gravity,
        area_variation=float(area[trusted].std() / area[trusted].mean()),
        pace=motion and read_pace(motion, free),
    )


def _cover(frames: Frames, ground: np.ndarray, paint: np.ndarray, ink: np.ndarray, *, reach: float) -> Cover:
    """Share of every pixel that the object covers.

    A pixel that is a mixture of background and object says how much of each by its place on the line between the two
    colours. A pixel far off that line, or nearer the line towards the ink of strings and springs, is something else;
    so is a pixel out of the reach of the object's middle.
    """
    offset = frames - ground.astype(np.float32)
    share, off_line = along_line(offset, paint - ground)
    _, off_ink = along_line(offset, ink - ground)
    contrast = np.linalg.norm(paint - ground)
    cover = np.where((off_line < 0.4 * contrast) & (off_line < off_ink), np.clip(share, 0, 1), 0)
    cover[cover < 0.15] = 0
    y, x = np.mgrid[: frames.shape[1], : frames.shape[2]]
    for _ in range(2):
        middle = centres_of(cover)[:, :, None, None]
        cover = np.where((x + 0.5 - middle[:, 0]) ** 2 + (y + 0.5 - middle[:, 1]) ** 2 < reach**2, cover, 0)
    return cover


def _shape(cover: Cover, centres: np.ndarray, area: np.ndarray, trusted: np.ndarray) -> str:
    """The shape whose outline, turned as fits best, overlaps the object best on average over the frames."""
    chosen = np.flatnonzero(trusted)
    chosen = chosen[np.unique(np.linspace(0, len(chosen) - 1, NUM_COMPARED).round().astype(int))]
    patches = np.stack([_patch(cover[i], centres[i], PATCH_REACH * float(np.sqrt(area[i]))) for i in chosen])
    overlaps = {}
    for shape in SHAPES:
        masks = _templates(shape)
        shared = np.minimum(patches[:, None], masks).sum(axis=(2, 3))
        joined = np.maximum(patches[:, None], masks).sum(axis=(2, 3))
        overlaps[shape] = (shared / joined).max(axis=1).mean()
    return max(overlaps, key=lambda shape: overlaps[shape])


@cache
def _templates(shape: str) -> Float[np.ndarray, "turns y x"]:
    """One shape at unit area in every orientation that looks different, six degrees apart."""
    fold = {"ball": 6, "square": 90, "triangle": 120, "star": 72, "ring": 6}[shape]
    grid = np.linspace(-PATCH_REACH, PATCH_REACH, PATCH_SIZE) * np.sqrt(AREA[shape])
    masks = []
    for turn in np.radians(np.arange(0, fold, 6)):
        x = np.cos(turn) * grid + np.sin(turn) * grid[:, None]
        y = np.cos(turn) * grid[:, None] - np.sin(turn) * grid
        masks.append(np.clip(0.5 - SIGNED_DISTANCE[shape](x, y) / 0.1, 0, 1))
    return np.stack(masks)


def _patch(picture: Picture, centre: np.ndarray, half: float) -> Patch:
    """A square around a centre, resampled bilinearly; beyond the picture its border is continued."""
    x, y = (centre[axis] - 0.5 + half * np.linspace(-1, 1, PATCH_SIZE) for axis in (0, 1))
    picture = _along(picture, y)
    return _along(picture.swapaxes(0, 1), x).swapaxes(0, 1)


def _along(picture: Picture, places: np.ndarray) -> Patch:
    """Linear interpolation along the first axis."""
    places = np.clip(places, 0, len(picture) - 1)
    low = np.minimum(places.astype(int), len(picture) - 2)
    part = (places - low).reshape(-1, *[1] * (picture.ndim - 1))
    return (1 - part) * picture[low] + part * picture[low + 1]


def _turning(frames: Frames, centres: Float[np.ndarray, "t 2"], radius: float) -> float:
    """How much the colours in and around a still object change over time, in 1/255.

    Smoothed in space and over neighbouring frames, so that noise counts little and a mark or a corner that moves on
    counts fully.
    """
    centre = np.median(centres, axis=0)
    patches = np.stack([_patch(frame.astype(np.float32), centre, 1.3 * radius) for frame in frames])
    for axis in (1, 2):
        patches = (np.roll(patches, 1, axis) + patches + np.roll(patches, -1, axis)) / 3
    if len(patches) >= 3:
        patches = (patches[:-2] + patches[1:-1] + patches[2:]) / 3
    return float(np.sqrt(np.mean(np.sum(patches.var(axis=0), axis=-1))))
