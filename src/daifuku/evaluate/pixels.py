"""What every reader of the world's pixels needs: named colours, what stands out from the background, and how far."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Shaped, UInt8

from daifuku.world.factors import BACKGROUNDS, COLOURS, RGB

Frames = UInt8[np.ndarray, "t h w 3"]
Cover = Float[np.ndarray, "t h w"]
"""Share of every pixel that something covers."""
Choice = Bool[np.ndarray, "t"]

VISIBLE_DIFFERENCE = 16.0
"""CIELAB distance from the background at which a pixel counts as foreground."""


@dataclass(frozen=True, kw_only=True)
class View:
    """A clip, and what stands out in it."""

    frames: Frames
    ground: Float[np.ndarray, "3"]
    """Colour of the background in this clip."""
    background: str
    """The palette's name for it."""
    lab: Float[np.ndarray, "t h w 3"]
    """The frames in CIELAB."""
    difference: Cover
    """CIELAB distance of every pixel from the background."""


@dataclass(frozen=True, kw_only=True)
class Paint:
    """A colour of the palette, and what it is in a clip."""

    name: str
    rgb: Shaped[np.ndarray, "3"]


def look(frames: Frames) -> View:
    """The background is the usual colour of the border, the floor's side apart."""
    edges = (frames[:, :2], frames[:, :, :2], frames[:, :, -2:])
    ground = np.median(np.concatenate([edge.reshape(-1, 3) for edge in edges]), axis=0)
    lab = cielab(frames)
    difference = np.linalg.norm(lab - cielab(ground), axis=-1)
    background = nearest_colour(ground, BACKGROUNDS)
    return View(frames=frames, ground=ground, background=background, lab=lab, difference=difference)


def paints(view: View) -> list[Paint]:
    """The palette's colours among the pixels within the foreground, the commonest first."""
    within = inner(view.difference > VISIBLE_DIFFERENCE)
    pixels = view.frames[within]
    if len(pixels) == 0:
        return []
    palette = cielab(np.array(list(COLOURS.values()), np.uint8))
    away = np.linalg.norm(view.lab[within][:, None] - palette, axis=-1)
    nearest = away.argmin(axis=1)
    votes = np.bincount(nearest, weights=1 / (10 + away.min(axis=1)) ** 2, minlength=len(palette))
    order = sorted(np.flatnonzero(votes), key=lambda one: -votes[one])
    return [Paint(name=tuple(COLOURS)[one], rgb=np.median(pixels[nearest == one], axis=0)) for one in order]


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


def flicker(view: View) -> float:
    """Mean change of background pixels from frame to frame, in 1/255."""
    still = view.difference < VISIBLE_DIFFERENCE / 2
    both = inner(still[1:] & still[:-1])
    change = np.abs(np.diff(view.frames.astype(np.int16), axis=0)).mean(axis=-1)
    return float(change[both].mean()) if both.any() else 0.0


def inner(mask: Bool[np.ndarray, "t h w"]) -> Bool[np.ndarray, "t h w"]:
    """Pixels whose eight neighbours all belong to the mask too."""
    for axis in (1, 2):
        mask = mask & np.roll(mask, 1, axis) & np.roll(mask, -1, axis)
    return mask


def along_line(offset: Float[np.ndarray, "t h w 3"], towards: Shaped[np.ndarray, "3"]) -> tuple[Cover, Cover]:
    """How far along a line from the origin each colour's nearest point lies, as a share, and its distance from it."""
    towards = towards.astype(np.float32)
    share = np.maximum(offset @ (towards / (towards @ towards)), 0)
    return share, np.linalg.norm(offset - share[..., None] * towards, axis=-1)


def centres_of(cover: Cover) -> Float[np.ndarray, "t 2"]:
    """Centre of mass of every frame, in pixels from the top left corner, x first; the middle of an empty frame."""
    area = np.maximum(cover.sum(axis=(1, 2)), 1e-6)
    x = cover.sum(axis=1) @ (np.arange(cover.shape[2]) + 0.5) / area
    y = cover.sum(axis=2) @ (np.arange(cover.shape[1]) + 0.5) / area
    return np.stack([x, y], axis=-1)


def touches_border(cover: Cover) -> Choice:
    """Frames in which more than a trace of it lies at an edge of the picture."""
    edges = (cover[:, 0], cover[:, -1], cover[:, :, 0], cover[:, :, -1])
    return np.any([edge.sum(axis=1) > 0.05 * cover.shape[1] for edge in edges], axis=0)
