"""Draws a scene: flat colours, outlines smooth over one pixel, so that motion smaller than a pixel is visible."""

from dataclasses import dataclass
from math import ceil

import numpy as np
from jaxtyping import Bool, Float, Float32, UInt8

from daifuku.world import shapes
from daifuku.world.captions import plain
from daifuku.world.factors import BACKGROUNDS, COLOURS, RGB
from daifuku.world.motions import Angles, Pendulum, Points, Spring, Times
from daifuku.world.render_fluids import draw_fluid
from daifuku.world.scene import Scene, Thing

TETHER_WIDTH = 0.022
COIL_WIDTH = 0.05
NUM_COILS = 6
MARK_SHADE = 0.25
"""Brightness of the mark, as a share of the object's."""

Frames = UInt8[np.ndarray, "t size size 3"]
Mask = Bool[np.ndarray, "t size size"]
Paths = Float[np.ndarray, "objects t 2"]
Turns = Float[np.ndarray, "objects t"]


@dataclass(frozen=True, kw_only=True)
class Clip:
    """A rendered scene and everything that is true of it."""

    frames: UInt8[np.ndarray, "t h w 3"]
    mask: Bool[np.ndarray, "t h w"]
    """Pixels of the objects, or of the fluid; strings, springs and poles are not among them."""
    tracks: Float32[np.ndarray, "objects t 2"]
    """Centres, x to the right and y downwards from the picture's top left corner, in pixels. Of a fluid, what can be
    followed: a drop until it touches the pool (NaN from then on), the centre of mass of all smoke, the middle of a
    flag's free end, the mean of the tips of grass."""
    angles: Float32[np.ndarray, "objects t"]
    """Rotations in rad, clockwise on the screen; a fluid has none."""
    caption: str
    scene: Scene


def render(scene: Scene, *, size: int = 64, num_frames: int = 31, fps: int = 20, caption: str | None = None) -> Clip:
    """Draw a scene in a square picture of `size` pixels; without a caption the clip gets the plain one."""
    time = np.arange(num_frames) / fps
    frames = np.empty((num_frames, size, size, 3), np.uint8)
    frames[0] = BACKGROUNDS[scene.background]
    frames[1:] = frames[0]
    mask = np.zeros(frames.shape[:3], bool)
    if scene.fluid is None:
        tracks, angles = _draw_things(frames, mask, scene, time)
    else:
        tracks = scene.fluid.law.track(time)[None] * size
        angles = np.zeros(tracks.shape[:2])
        draw_fluid(frames, mask, scene.fluid, time, tether_colour(scene.background))
    return Clip(
        frames=frames,
        mask=mask,
        tracks=tracks.astype(np.float32),
        angles=angles.astype(np.float32),
        caption=plain(scene) if caption is None else caption,
        scene=scene,
    )


def tether_colour(background: str) -> RGB:
    """Colour of a string or spring in front of a background: light on dark ones, dark on the others."""
    return (200, 200, 200) if sum(BACKGROUNDS[background]) < 3 * 100 else (70, 70, 70)


def _draw_things(frames: Frames, mask: Mask, scene: Scene, time: Times) -> tuple[Paths, Turns]:
    """Draw the objects over the strings and springs of all of them; gives their tracks and angles."""
    tracks = np.stack([thing.path.position(time) for thing in scene.things]) * frames.shape[1]
    angles = np.stack([thing.path.rotation(time) for thing in scene.things])
    for thing, track in zip(scene.things, tracks, strict=True):
        _draw_tether(frames, thing, track, scene.background)
    for thing, track, rotation in zip(scene.things, tracks, angles, strict=True):
        _draw_thing(frames, mask, thing, track, rotation)
    return tracks, angles


def _draw_thing(frames: Frames, mask: Mask, thing: Thing, track: Points, rotation: Angles) -> None:
    """Blend an object into every frame, touching only the window around it."""
    size = frames.shape[1]
    radius = thing.radius * size
    width = 2 * ceil(shapes.REACH[thing.shape] * radius + 1) + 1
    corner = np.floor(track).astype(int) - width // 2
    local = ((corner - track)[..., None] + np.arange(width) + 0.5).astype(np.float32) / np.float32(radius)
    x, y = local[:, 0, None, :], local[:, 1, :, None]
    if rotation.any():
        cosine, sine = (function(rotation).astype(np.float32)[:, None, None] for function in (np.cos, np.sin))
        x, y = cosine * x + sine * y, cosine * y - sine * x
    cover = shapes.coverage(shapes.SIGNED_DISTANCE[thing.shape](x, y) * radius)
    shade = np.ones_like(cover)
    if thing.has_mark:
        away = np.sqrt(x * x + (y + shapes.MARK_DISTANCE[thing.shape]) ** 2) - shapes.MARK_RADIUS[thing.shape]
        shade -= (1 - MARK_SHADE) * shapes.coverage(away * radius)
    paint = (cover * shade)[..., None] * np.array(COLOURS[thing.colour], np.float32) + 0.5
    clear = 1 - cover[..., None]
    for frame, (column, row) in enumerate(corner):
        top, bottom = max(row, 0), min(row + width, size)
        left, right = max(column, 0), min(column + width, size)
        if top >= bottom or left >= right:
            continue
        inside = (frame, slice(top - row, bottom - row), slice(left - column, right - column))
        window = (frame, slice(top, bottom), slice(left, right))
        frames[window] = clear[inside] * frames[window] + paint[inside]
        mask[window] |= cover[inside] > 0.5


def _draw_tether(frames: Frames, thing: Thing, track: Points, background: str) -> None:
    """Blend in the string a pendulum hangs on, or the zigzag of a spring, down to the object."""
    path = thing.path
    if not isinstance(path, Pendulum | Spring):
        return
    size = frames.shape[1]
    anchor_x, anchor_y = (path.pivot_x, path.pivot_y) if isinstance(path, Pendulum) else (path.x, 0.0)
    anchor = np.array([anchor_x, anchor_y]) * size
    reach = COIL_WIDTH * size + 2
    left = max(int(min(anchor[0], track[:, 0].min()) - reach), 0)
    right = min(int(max(anchor[0], track[:, 0].max()) + reach) + 1, size)
    bottom = min(int(track[:, 1].max()) + 1, size)
    x = np.arange(left, right, dtype=np.float32)[None, None, :] + 0.5
    y = np.arange(bottom, dtype=np.float32)[None, :, None] + 0.5
    drop = (track - anchor).astype(np.float32)[:, None, None, :]
    along = (y - np.float32(anchor[1])) / drop[..., 1]
    centre = np.float32(anchor[0]) + along * drop[..., 0]
    slope = drop[..., 0] / drop[..., 1]
    if isinstance(path, Spring):
        turn = along * NUM_COILS % 1
        width = np.float32(COIL_WIDTH * size)
        centre = centre + width * (np.abs(4 * turn - 2) - 1)
        slope = 4 * width * NUM_COILS / drop[..., 1]
    distance = np.abs(x - centre) / np.sqrt(1 + slope**2) - np.float32(TETHER_WIDTH / 2 * size)
    end = 1 - shapes.HOLE_RADIUS[thing.shape] * thing.radius * size / np.sqrt((drop**2).sum(-1))
    cover = shapes.coverage(distance) * ((along >= 0) & (along <= end))
    ink = np.array(tether_colour(background), np.float32)
    window = frames[:, :bottom, left:right]
    window[:] = window + cover[..., None] * (ink - window) + np.float32(0.5)
