"""How fast an object turns around itself: the rate at which turning its pictures back makes them all alike."""

import numpy as np
from jaxtyping import Float, UInt8

NUM_ANGLES = 96
NUM_HARMONICS = 24
RADII = np.linspace(0.25, 1.25, 9)
"""Where the pictures are compared, in radii of the object."""

RATES = np.arange(1.0, 8.0, 0.04)
"""Rates that are told apart, in rad/s; either way."""

Frames = UInt8[np.ndarray, "t h w 3"]
Times = Float[np.ndarray, "t"]
Rings = Float[np.ndarray, "t radii angles colour"]


def turn_rate(frames: Frames, time: Times, centre: Float[np.ndarray, "2"], radius: float) -> float:
    """Turning rate in rad/s, clockwise on the screen, of an object whose centre, in pixels, stays where it is.

    Radius in pixels, times in seconds. Turned by an angle a, harmonic m of the colours around the centre is
    multiplied by exp(-i m a).
    """
    rings = _rings(frames, centre, radius)
    waves = np.fft.rfft(rings, axis=2)[:, :, 1 : NUM_HARMONICS + 1]
    rates = np.concatenate([-RATES[::-1], RATES])
    back = np.exp(1j * rates[:, None, None] * time[:, None] * np.arange(1, NUM_HARMONICS + 1))
    alike = np.abs(np.einsum("vtm,trmc->vrmc", back, waves)) ** 2
    # A ring counts by its length.
    return float(rates[np.einsum("vrmc,r->v", alike, RADII).argmax()])


def _rings(frames: Frames, centre: Float[np.ndarray, "2"], radius: float) -> Rings:
    """The colours on circles around a centre, by bilinear interpolation; beyond the picture its border is continued."""
    angles = np.arange(NUM_ANGLES) * 2 * np.pi / NUM_ANGLES
    x = centre[0] - 0.5 + radius * RADII[:, None] * np.cos(angles)
    y = centre[1] - 0.5 + radius * RADII[:, None] * np.sin(angles)
    height, width = frames.shape[1:3]
    x, y = np.clip(x, 0, width - 1.001), np.clip(y, 0, height - 1.001)
    left, top = x.astype(int), y.astype(int)
    x, y = (x - left)[..., None], (y - top)[..., None]
    upper = (1 - x) * frames[:, top, left] + x * frames[:, top, left + 1]
    lower = (1 - x) * frames[:, top + 1, left] + x * frames[:, top + 1, left + 1]
    return (1 - y) * upper + y * lower
