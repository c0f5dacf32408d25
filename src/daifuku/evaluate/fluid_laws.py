"""The laws of fluid-like motions, fitted to what a clip shows of them. Lengths in picture sides, times in seconds."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from daifuku.evaluate.laws import LEAST_GRAVITY
from daifuku.evaluate.pixels import Cover, View, along_line
from daifuku.world.fluids import Splash

Series = Float[np.ndarray, "t places"]


@dataclass(frozen=True, kw_only=True)
class Found:
    """How large a fluid is, where it goes, and its law's number: see `FluidReading`."""

    size: float
    direction: str | None
    law: float


def read_splash(view: View, cover: Cover, paint: np.ndarray, fps: int) -> Found | None:
    """The drop, while it falls; None if nothing falls into the pool and is gone then."""
    side = cover.shape[1]
    level = _level(cover)
    above = cover[:, : int(level) - 1]
    area = above.sum(axis=(1, 2))
    rows = np.arange(above.shape[1]) + 0.5
    centre = above.sum(axis=2) @ rows / np.maximum(area, 1e-6)
    radius = np.sqrt(np.median(area[: max(len(area) // 6, 1)]) / np.pi)
    falling = (centre + radius < level - 1) & (area > 0.7 * np.pi * radius**2)
    num = int(np.argmin(falling)) if not falling.all() else 0
    if radius < 0.03 * side or num < 5:
        return None
    time = np.arange(num) / fps
    basis = np.stack([np.ones(num), time**2 / 2], axis=1)
    (_, gravity), *_ = np.linalg.lstsq(basis, centre[:num] / side, rcond=None)
    gone = area[num + 2 :].min(initial=np.inf) < 0.5 * np.pi * radius**2
    if gravity < LEAST_GRAVITY or not gone:
        return None
    return Found(size=float(radius / side), direction=None, law=float(gravity))


def read_smoke(view: View, cover: Cover, paint: np.ndarray, fps: int) -> Found | None:
    """The upper end of the plume, which rises as fast as its puffs; None if it does not grow."""
    side = cover.shape[1]
    share, off_line = along_line(view.frames - view.ground.astype(np.float32), paint - view.ground)
    density = -np.log1p(-np.clip(np.where(off_line < 0.4 * np.linalg.norm(paint - view.ground), share, 0), 0, 0.97))
    profile = density.sum(axis=2)
    return None
