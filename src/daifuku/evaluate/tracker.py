"""Reads a clip of the world back from its pixels: classical vision, no networks.

The background is the usual colour of the border; the object is what lies on the straight line in colour space from the
background to one colour of the palette; its shape is the best overlap with the world's own outlines.
"""

from dataclasses import dataclass, replace
from functools import cache

import numpy as np
from jaxtyping import Bool, Float, Shaped, UInt8

from daifuku.evaluate.laws import explain
from daifuku.world.factors import BACKGROUNDS, COLOURS, RGB, SHAPES, SIZES
from daifuku.world.render import tether_colour
from daifuku.world.shapes import AREA, REACH, SIGNED_DISTANCE

Frames = UInt8[np.ndarray, "t h w 3"]
Cover = Float[np.ndarray, "t h w"]
Picture = Float[np.ndarray, "high wide ..."]
Patch = Float[np.ndarray, "y x ..."]
Choice = Bool[np.ndarray, "t"]

VISIBLE_DIFFERENCE = 16.0
"""CIELAB distance from the background at which a pixel counts as foreground."""

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
    flicker: float
    """Mean change of background pixels from frame to frame, in 1/255."""


def read(frames: Frames, *, fps: int = 20) -> Reading:
    """Read background, object and motion off a clip."""
    edges = (frames[:, :2], frames[:, :, :2], frames[:, :, -2:])
    ground = np.median(np.concatenate([edge.reshape(-1, 3) for edge in edges]), axis=0)
    difference = np.linalg.norm(cielab(frames) - cielab(ground), axis=-1)
    empty = Reading(
        background=nearest_colour(ground, BACKGROUNDS),
        colour=None,
        shape=None,
        size=None,
        motion=None,
        track=np.full((len(frames), 2), np.nan),
        gravity=None,
        area_variation=None,
        flicker=_flicker(frames, difference < VISIBLE_DIFFERENCE / 2),
    )
    side = frames.shape[1]
    found = _object_colour(frames, difference)
    if found is None:
        return empty
    colour, paint = found
    ink = np.array(tether_colour(empty.background))
    cover = _cover(frames, ground, paint, ink, reach=1.1 * max(REACH.values()) * max(SIZES.values()) * side)
    area = cover.sum(axis=(1, 2))
    shown = area > LEAST_AREA * min(AREA.values()) * (min(SIZES.values()) * side) ** 2
    if not shown.any():
        return replace(empty, colour=colour)
    whole = shown & ~_touches_border(cover)
    trusted = whole if whole.sum() >= 5 else shown
    centres = _centres(cover)
    shape = _shape(cover, centres, area, trusted)
    radius = float(np.sqrt(np.median(area[trusted]) / AREA[shape])) / side
    law = explain(np.flatnonzero(trusted) / fps, centres[trusted] / side)
    still = law is not None and law.motion == "rest"
    turns = still and _turning(frames[trusted], centres[trusted], radius * side) > TURNING * np.linalg.norm(
        paint - ground
    )
    return replace(
        empty,
        colour=colour,
        shape=shape,
        size=min(SIZES, key=lambda size: abs(np.log(SIZES[size] / radius))),
        motion="spin" if turns else law and law.motion,
        track=np.where(trusted[:, None], centres, np.nan),
        gravity=law and law.gravity,
        area_variation=float(area[trusted].std() / area[trusted].mean()),
    )


def cielab(rgb: Shaped[np.ndarray, "*pixels 3"]) -> Float[np.ndarray, "*pixels 3"]:
    """CIELAB (D65, two-degree observer) of sRGB values from 0 to 255."""
    level = np.arange(0, 256, dtype=np.float32) / 255
    table = np.where(level <= 0.04045, level / 12.92, ((level + 0.055) / 1.055) ** 2.4).astype(np.float32)
    linear = table[rgb] if rgb.dtype == np.uint8 else np.interp(rgb, np.arange(256), table).astype(np.float32)
    to_xyz = np.array(
        [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
    )
    xyz = linear @ (to_xyz / np.array([[0.95047], [1.0], [1.08883]])).T.astype(np.float32)
    bent = np.where(xyz > 216 / 24389, np.cbrt(xyz), (24389 / 27 * xyz + 16) / 116)
    x, y, z = bent[..., 0], bent[..., 1], bent[..., 2]
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)


def nearest_colour(rgb: Shaped[np.ndarray, "3"], palette: dict[str, RGB]) -> str:
    """Name of the palette's colour that is nearest in CIELAB."""
    return min(palette, key=lambda name: float(np.linalg.norm(cielab(rgb) - cielab(np.array(palette[name], np.uint8)))))


def _flicker(frames: Frames, still: Bool[np.ndarray, "t h w"]) -> float:
    both = _inner(still[1:] & still[:-1])
    change = np.abs(np.diff(frames.astype(np.int16), axis=0)).mean(axis=-1)
    return float(change[both].mean()) if both.any() else 0.0


def _inner(mask: Bool[np.ndarray, "t h w"]) -> Bool[np.ndarray, "t h w"]:
    """Pixels whose eight neighbours all belong to the mask too."""
    for axis in (1, 2):
        mask = mask & np.roll(mask, 1, axis) & np.roll(mask, -1, axis)
    return mask


def _object_colour(frames: Frames, difference: Cover) -> tuple[str, Float[np.ndarray, "3"]] | None:
    """The palette's commonest colour among the pixels within the foreground, and the colour it has in this clip."""
    pixels = frames[_inner(difference > VISIBLE_DIFFERENCE)]
    if len(pixels) == 0:
        return None
    palette = cielab(np.array(list(COLOURS.values()), np.uint8))
    away = np.linalg.norm(cielab(pixels)[:, None] - palette, axis=-1)
    votes = np.bincount(away.argmin(axis=1), weights=1 / (10 + away.min(axis=1)) ** 2, minlength=len(palette))
    winner = int(votes.argmax())
    return tuple(COLOURS)[winner], np.median(pixels[away.argmin(axis=1) == winner], axis=0)


def _cover(frames: Frames, ground: np.ndarray, paint: np.ndarray, ink: np.ndarray, *, reach: float) -> Cover:
    """Share of every pixel that the object covers.

    A pixel that is a mixture of background and object says how much of each by its place on the line between the two
    colours. A pixel far off that line, or nearer the line towards the ink of strings and springs, is something else;
    so is a pixel out of the reach of the object's middle.
    """
    offset = frames - ground.astype(np.float32)
    share, off_line = _along_line(offset, paint - ground)
    _, off_ink = _along_line(offset, ink - ground)
    contrast = np.linalg.norm(paint - ground)
    cover = np.where((off_line < 0.4 * contrast) & (off_line < off_ink), np.clip(share, 0, 1), 0)
    cover[cover < 0.15] = 0
    y, x = np.mgrid[: frames.shape[1], : frames.shape[2]]
    for _ in range(2):
        middle = _centres(cover)[:, :, None, None]
        cover = np.where((x + 0.5 - middle[:, 0]) ** 2 + (y + 0.5 - middle[:, 1]) ** 2 < reach**2, cover, 0)
    return cover


def _along_line(offset: Float[np.ndarray, "t h w 3"], towards: Shaped[np.ndarray, "3"]) -> tuple[Cover, Cover]:
    """How far along a line from the origin each colour's nearest point lies, as a share, and its distance from it."""
    towards = towards.astype(np.float32)
    share = np.maximum(offset @ (towards / (towards @ towards)), 0)
    return share, np.linalg.norm(offset - share[..., None] * towards, axis=-1)


def _centres(cover: Cover) -> Float[np.ndarray, "t 2"]:
    """Centre of mass of every frame, in pixels from the top left corner, x first; the middle of an empty frame."""
    area = np.maximum(cover.sum(axis=(1, 2)), 1e-6)
    x = cover.sum(axis=1) @ (np.arange(cover.shape[2]) + 0.5) / area
    y = cover.sum(axis=2) @ (np.arange(cover.shape[1]) + 0.5) / area
    return np.stack([x, y], axis=-1)


def _touches_border(cover: Cover) -> Choice:
    edges = (cover[:, 0], cover[:, -1], cover[:, :, 0], cover[:, :, -1])
    return np.any([edge.sum(axis=1) > 0.05 * cover.shape[1] for edge in edges], axis=0)


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
