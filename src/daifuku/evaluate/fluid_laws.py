"""The laws of fluid-like motions, fitted to what a clip shows of them. Lengths in picture sides, times in seconds."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import Float

from daifuku.evaluate.laws import LEAST_GRAVITY
from daifuku.evaluate.pixels import Cover, View, along_line, centres_of

Series = Float[np.ndarray, "t places"]
Rows = Float[np.ndarray, "rows"]

LEAST_DROP = 0.03
"""Radius of a drop."""

LEAST_SPRAY = 0.0005
"""Share of the picture that droplets cover above the pool."""

PLUME_EDGE = 0.3
"""Cover at which a plume is taken to end; so far out that it widens with its puffs, and hardly fades."""

END_OF_PLUME = (0.88, 0.0174)
"""Slope and offset, fitted to true renders, from a puff's width to the standard deviation of a plume's lower end."""

LEAST_GROWTH = 1.15
"""Of smoke, between the first and the last quarter of a clip."""

LEAST_RISE, LEAST_DRIFT = 0.1, 0.07
"""Speeds, upwards and sideways, of smoke; in the world the smallest are 0.22 and 0.14."""

LEAST_WAVE = 0.008
"""Standard deviation of a free end's height from which a flag counts as waving."""

LEAST_SWAY = 0.08
"""Standard deviation of an angle, in rad, from which grass counts as swaying."""

LEAST_EXPLAINED = 0.7
"""Share of what moves in flags and grass that their waves must explain."""

LEAST_CLOTH = 0.5
"""Length of a flag that is there in every frame."""

NUM_WINDOWS = 8
"""Side by side, in each of which the blades are taken as parallel."""


@dataclass(frozen=True, kw_only=True)
class Found:
    """How large a fluid is, where it goes, and its law's number: see `FluidReading`."""

    size: float
    direction: str | None
    law: float


def read_splash(view: View, cover: Cover, paint: np.ndarray, fps: int) -> Found | None:
    """The drop, while it falls; None if nothing falls into the pool, or nothing flies up beside it."""
    side = cover.shape[1]
    level = _level(cover)
    above = cover[:, : int(level) - 1]
    area, centres = above.sum(axis=(1, 2)), centres_of(above)
    radius = np.sqrt(np.median(area[: max(len(area) // 6, 1)]) / np.pi)
    falling = (centres[:, 1] + radius < level - 1) & (area > 0.7 * np.pi * radius**2)
    num = len(falling) if falling.all() else int(np.argmin(falling))
    if radius < LEAST_DROP * side or num < 5:
        return None
    time = np.arange(num) / fps
    basis = np.stack([np.ones(num), time**2 / 2], axis=1)
    (_, gravity), *_ = np.linalg.lstsq(basis, centres[:num, 1] / side, rcond=None)
    beside = np.abs(np.arange(side) + 0.5 - np.median(centres[:num, 0])) > 1.3 * radius
    thrown = above[num:, : int(level - 0.03 * side), beside].sum(axis=(1, 2)).max(initial=0)
    if gravity < LEAST_GRAVITY or thrown < LEAST_SPRAY * side**2:
        return None
    return Found(size=float(radius / side), direction=None, law=float(gravity))


def read_smoke(view: View, cover: Cover, paint: np.ndarray, fps: int) -> Found | None:
    """The upper end of the plume, which rises as its puffs do; None if it does not rise, or smoke does not grow."""
    side = view.frames.shape[1]
    share, off_line = along_line(view.frames - view.ground.astype(np.float32), paint - view.ground)
    smoke = np.where(off_line < 0.4 * np.linalg.norm(paint - view.ground), np.clip(share, 0, 1), 0)
    area, quarter = smoke.sum(axis=(1, 2)), len(smoke) // 4
    time = np.arange(len(smoke)) / fps
    ends = np.array([_upper_end(profile) for profile in smoke.max(axis=2)]) / side
    seen = ends > 1.5 / side
    if seen.sum() < 5 or area[-quarter:].mean() < LEAST_GROWTH * area[:quarter].mean():
        return None
    speed = -np.polyfit(time[seen], ends[seen], 1)[0]
    if speed < LEAST_RISE:
        return None
    # Each puff goes on as it began: the middle of them all moves half as fast.
    drift = 2 * np.polyfit(time, centres_of(smoke)[:, 0] / side, 1)[0]
    direction = None if abs(drift) < LEAST_DRIFT else "right" if drift > 0 else "left"
    return Found(size=_source_width(smoke), direction=direction, law=float(speed))


def _upper_end(profile: Rows) -> float:
    """Where the cover first reaches the share `PLUME_EDGE`, from above, to a part of a pixel; 0 if at once."""
    first = int(np.argmax(profile > PLUME_EDGE))
    if first == 0:
        return 0.0
    before, after = profile[first - 1 : first + 1]
    return float(first - 0.5 + (PLUME_EDGE - before) / (after - before))


def _source_width(smoke: Cover) -> float:
    """Standard deviation of a new puff, from how wide the plume is at its lower end."""
    side = smoke.shape[1]
    usual = np.where(smoke < 0.15, 0, smoke).mean(axis=0)
    end = int(np.flatnonzero(usual.max(axis=1) > 0.15).max(initial=0)) + 1
    across = usual[max(end - round(0.04 * side), 0) : end].sum(axis=0)
    x = (np.arange(side) + 0.5) / side
    middle = across @ x / across.sum()
    slope, offset = END_OF_PLUME
    return max(float(np.sqrt(across @ (x - middle) ** 2 / across.sum())) - offset, 0.01) / slope


def read_flag(view: View, cover: Cover, paint: np.ndarray, fps: int) -> Found | None:
    """The wave in the height of the cloth, column by column; None if the free end hangs still."""
    side = cover.shape[1]
    heights = cover.sum(axis=1)
    rows = np.arange(side) + 0.5
    there = heights.min(axis=0) > 0.3 * np.median(heights[heights > 1])
    if there.sum() < LEAST_CLOTH * side:
        return None
    middle = np.einsum("tyx,y->tx", cover, rows)[:, there] / heights[:, there] / side
    sway = middle.std(axis=0)
    third = len(sway) // 3
    frequency, explained = _frequency(middle, fps, np.arange(0.6, 3.5, 0.02))
    if sway.max() < LEAST_WAVE or explained < LEAST_EXPLAINED:
        return None
    return Found(
        size=float(np.median(heights[:, there])) / side,
        direction="right" if sway[-third:].mean() > sway[:third].mean() else "left",
        law=frequency,
    )


def read_grass(view: View, cover: Cover, paint: np.ndarray, fps: int) -> Found | None:
    """How steep the blades stand, window by window; None if they stand still."""
    side = cover.shape[1]
    height = _grass_height(cover)
    top, bottom = side - round(0.75 * height), side - round(0.35 * height)
    grey = view.frames[:, max(top, 0) : bottom].astype(np.float32).mean(axis=-1)
    along_y, along_x = np.gradient(grey, axis=(1, 2))
    products = (along_x * along_y, along_x**2 - along_y**2)
    edges = np.linspace(0, side, NUM_WINDOWS + 1).round().astype(int)
    both, less = (np.stack([one[:, :, a:b].sum(axis=(1, 2)) for a, b in pairwise(edges)], axis=1) for one in products)
    lean = np.arctan2(2 * both, less) / 2
    frequency, explained = _frequency(lean, fps, np.arange(0.3, 2.0, 0.02))
    if np.median(lean.std(axis=0)) < LEAST_SWAY or explained < LEAST_EXPLAINED:
        return None
    return Found(
        size=height / side,
        direction="right" if lean.mean() > 0 else "left",
        law=frequency,
    )


def _grass_height(cover: Cover) -> float:
    rows = np.quantile(cover, 0.995, axis=(0, 2))
    return cover.shape[1] - float(np.argmax(rows > 0.5))


def _frequency(series: Series, fps: int, options: np.ndarray) -> tuple[float, float]:
    """The frequency in Hz whose wave, with its overtone, explains all series best, and the share that it explains."""
    time = np.arange(len(series)) / fps
    left = []
    for frequency in options:
        turn = 2 * np.pi * frequency * time
        basis = np.stack([np.ones_like(time), np.sin(turn), np.cos(turn), np.sin(2 * turn), np.cos(2 * turn)], axis=1)
        left.append(np.sum((series - basis @ np.linalg.lstsq(basis, series, rcond=None)[0]) ** 2))
    best = int(np.argmin(left))
    return float(options[best]), 1 - left[best] / max(np.sum((series - series.mean(axis=0)) ** 2), 1e-9)


def _level(cover: Cover) -> float:
    """Height of the still surface, in rows from the top."""
    rows = cover[: max(len(cover) // 6, 1)].mean(axis=(0, 2))
    return float(len(rows) - rows[len(rows) // 2 :].sum())
