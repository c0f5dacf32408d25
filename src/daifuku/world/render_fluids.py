"""Draws fluids: how much of each pixel they cover, and how light they are there."""

from dataclasses import dataclass
from math import ceil, floor, pi

import numpy as np
from jaxtyping import Bool, Float, Float32, UInt8

from daifuku.world.factors import COLOURS, RGB
from daifuku.world.fluids import Flag, Grass, Law, Places, Smoke, Splash
from daifuku.world.motions import Times
from daifuku.world.scene import Fluid
from daifuku.world.shapes import coverage

POLE_WIDTH = 0.024
BLADE_WIDTH = 0.04
"""Of a blade of grass at its root; it narrows to nothing at the tip."""

SMOKE = 0.55
"""Smoke of one puff: the integral of its optical density over the picture, for each unit of its first width."""

Cover = Float32[np.ndarray, "t high wide"]


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A fluid in a window of every frame."""

    cover: Cover
    """Share of each pixel."""
    shade: Cover
    """Brightness of the colour from 0 to 1; what is above 1 is the share of white in it."""
    top: int = 0
    left: int = 0


def draw_fluid(
    frames: UInt8[np.ndarray, "t size size 3"],
    mask: Bool[np.ndarray, "t size size"],
    fluid: Fluid,
    time: Times,
    ink: RGB,
) -> None:
    """Blend a fluid into every frame and mark its pixels in the mask; poles are of the colour `ink`."""
    if isinstance(fluid.law, Flag):
        _draw_pole(frames, fluid.law, ink)
    layer = layer_of(fluid.law, time, frames.shape[1])
    high, wide = layer.cover.shape[1:]
    window = (slice(None), slice(layer.top, layer.top + high), slice(layer.left, layer.left + wide))
    paint = np.array(COLOURS[fluid.colour], np.float32)
    white = layer.cover * np.maximum(layer.shade - 1, 0)
    coloured = layer.cover * np.minimum(layer.shade, 1) - white
    clear, white = 1 - layer.cover, 255 * white + np.float32(0.5)
    for channel in range(3):
        frames[window][..., channel] = clear * frames[window][..., channel] + coloured * paint[channel] + white
    mask[window] = layer.cover > 0.5


def layer_of(law: Law, time: Times, size: int) -> Layer:
    """A fluid at every time, in a square picture of `size` pixels."""
    match law:
        case Splash():
            return _splash(law, time, size)
        case Smoke():
            return _smoke(law, time, size)
        case Flag():
            return _flag(law, time, size)
        case Grass():
            return _grass(law, time, size)


def _splash(law: Splash, time: Times, size: int) -> Layer:
    surface = (law.surface(time, _middles(size)) * size).astype(np.float32)
    slope = np.gradient(surface, axis=1)
    depth = np.arange(size, dtype=np.float32)[:, None] + np.float32(0.5) - surface[:, None]
    cover = coverage(-depth / np.sqrt(1 + slope**2)[:, None])
    # Darker towards the bottom and lighter along the surface, so that waves show on a background of like colour.
    deep = np.maximum(_middles(size).astype(np.float32) - np.float32(law.level), 0)[:, None]
    crest = np.maximum(1 - np.maximum(depth, 0) / np.float32(0.035 * size), 0)
    shade = 1 - np.float32(0.9) * deep + np.float32(0.4) * crest**2
    _draw_disc(cover, shade, law.drop(time) * size, law.radius * size)
    for one, path in zip(law.droplets * 2, law.spray(time), strict=True):
        _draw_disc(cover, shade, path * size, one.radius * size)
    return Layer(cover=cover, shade=shade)


def _draw_disc(cover: Cover, shade: Cover, path: Float[np.ndarray, "t 2"], radius: float) -> None:
    """Add a disc with a highlight to the upper left, where the fluid does not cover the pixel yet."""
    size, width = cover.shape[1], 2 * ceil(radius + 1) + 1
    for frame, (x, y) in enumerate(path):
        if not (-radius < x < size + radius and -radius < y < size + radius):
            continue
        top, left = max(floor(y) - width // 2, 0), max(floor(x) - width // 2, 0)
        bottom, right = min(floor(y) + width // 2 + 1, size), min(floor(x) + width // 2 + 1, size)
        rows = (np.arange(top, bottom, dtype=np.float32) + np.float32(0.5 - y))[:, None]
        columns = np.arange(left, right, dtype=np.float32) + np.float32(0.5 - x)
        window = (frame, slice(top, bottom), slice(left, right))
        front = coverage(np.sqrt(rows**2 + columns**2) - np.float32(radius)) * (1 - cover[window])
        away = ((rows / radius + 0.35) ** 2 + (columns / radius + 0.35) ** 2) / 0.12
        lit = 1 + 0.5 * np.maximum(1 - away, 0)
        total = cover[window] + front
        shade[window] += front / np.maximum(total, 1e-6) * (lit - shade[window])
        cover[window] = total


def _smoke(law: Smoke, time: Times, size: int) -> Layer:
    """Puffs are Gaussian, so that a frame is one product of matrices; light dims as exp(-density)."""
    puffs, width, amount = (each.swapaxes(0, 1) for each in (law.puffs(time), law.widths(time), law.amount(time)))
    across, down = (
        np.exp(-(((_middles(size) - puffs[..., [axis]]) / width[..., None]) ** 2) / 2).astype(np.float32)
        for axis in (0, 1)
    )
    middle = (SMOKE * law.width * amount / (2 * pi * width**2)).astype(np.float32)
    density = (down * middle[..., None]).swapaxes(1, 2) @ across
    cover = 1 - np.exp(-density)
    # Lit from above and a little from the left: puffs look round where the density grows against the light.
    slope_y, slope_x = np.gradient(density, axis=(1, 2))
    shade = 0.95 + (0.016 * size) * (0.5 * slope_x + slope_y) / (density + 0.7)
    return Layer(cover=cover, shade=np.clip(shade, 0.7, 1.25))


def _draw_pole(frames: UInt8[np.ndarray, "t size size 3"], law: Flag, ink: RGB) -> None:
    size = frames.shape[1]
    top = floor((law.y - 0.03) * size)
    away = np.abs(_middles(size) - law.x) - POLE_WIDTH / 2
    cover = coverage(away * size).astype(np.float32)[:, None]
    frames[:, top:] = frames[:, top:] + cover * (np.array(ink, np.float32) - frames[:, top:]) + np.float32(0.5)


def _flag(law: Flag, time: Times, size: int) -> Layer:
    along = law.towards * (_middles(size) - law.x)
    chosen = np.flatnonzero((along > 0) & (along < law.length + 1 / size))
    along = along[chosen][:: law.towards]
    upper, lower = (
        ((law.y + share * law.height + law.offset(time, along, share)) * size).astype(np.float32)
        for share in (0.0, 1.0)
    )
    top, bottom = max(floor(upper.min()) - 1, 0), min(ceil(lower.max()) + 1, size)
    rows = np.arange(top, bottom, dtype=np.float32)[:, None] + np.float32(0.5)
    cover = coverage((law.arc(time, along) - law.length).astype(np.float32) * size)[:, None]
    for distance, edge in ((upper[:, None] - rows, upper), (rows - lower[:, None], lower)):
        cover = cover * coverage(distance / np.sqrt(1 + np.gradient(edge, axis=1) ** 2)[:, None])
    down = np.clip((rows - upper[:, None]) / np.float32(law.height * size), 0, 1)
    shade = 0.9 + 0.3 * law.fold(time.astype(np.float32), along.astype(np.float32), down)
    return Layer(cover=cover[..., :: law.towards], shade=shade[..., :: law.towards], top=top, left=int(chosen[0]))


def _grass(law: Grass, time: Times, size: int) -> Layer:
    """All blades at once: the clear shares of a pixel multiply, and blades in front count far more for its shade."""
    top = max(floor((law.floor - law.lengths.max()) * size), 0)
    height = np.float32(law.floor) - (np.arange(top, size, dtype=np.float32) + np.float32(0.5)) / size
    bend = law.bend(time).astype(np.float32)[..., None]
    bend = np.where(np.abs(bend) < 1e-3, np.float32(1e-3), bend)
    lengths, roots = (each.astype(np.float32)[:, None, None] for each in (law.lengths, law.roots))
    sine = np.clip(bend * height / lengths, -0.999, 0.999)
    cosine = np.sqrt(1 - sine**2)
    share = np.arcsin(sine) / bend
    width = np.float32(BLADE_WIDTH * size) * np.maximum(1 - share, 0)
    middle = size * (roots + height * sine / (1 + cosine))
    # A few pixels beside each blade's middle are all that it can touch: far fewer than the picture has.
    reach = ceil(BLADE_WIDTH * size / 2)
    column = np.floor(middle).astype(np.int32)[..., None] + np.arange(-reach, reach + 1, dtype=np.int32)
    away = np.abs(column - (middle - np.float32(0.5))[..., None]) * cosine[..., None]
    cover = np.clip(0.5 + width[..., None] / 2 - away, 0, np.minimum(width, 0.99)[..., None])
    inside = (column >= 0) & (column < size) & (cover > 0)
    lines = np.arange(len(time) * len(height), dtype=np.int32).reshape(len(time), len(height), 1) * size
    place, cover = (lines + column)[inside], cover[inside]
    depth = law.scattered(3).astype(np.float32)[:, None, None, None]
    near = cover * np.broadcast_to(np.exp(6 * depth), inside.shape)[inside]
    light = np.broadcast_to(0.5 + 0.25 * depth + 0.45 * share[..., None], inside.shape)[inside]
    covered, nearness, lit = (
        np.bincount(place, values, minlength=lines.size * size).reshape(len(time), len(height), size).astype(np.float32)
        for values in (np.log1p(-cover), near, near * light)
    )
    return Layer(cover=1 - np.exp(covered), shade=lit / np.maximum(nearness, 1e-6), top=top)


def _middles(size: int) -> Places:
    return (np.arange(size) + 0.5) / size
