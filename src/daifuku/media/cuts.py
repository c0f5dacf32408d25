"""Cuts: where one shot ends and the next begins.

Motion moves the colours of a picture about and a cut replaces them, so frames are compared by their colours alone.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, UInt8

REACH = 4
"""Frames on either side that a change is compared with."""

LEAST = 4.0
"""The change, in levels of 255, that a cut has at least."""

PEAK = 3.0
"""How many times as large as the changes around it a cut is. Motion, however quick, lasts for several frames."""

_NUM_BINS = 32

Shares = Float[np.ndarray, "3 bins"]


def colours(picture: UInt8[np.ndarray, "h w 3"]) -> Shares:
    """The distribution of each colour: the share of values up to each of 32 levels."""
    bins = picture.reshape(-1, 3) // (256 // _NUM_BINS)
    counts = [np.bincount(bins[:, channel], minlength=_NUM_BINS) for channel in range(3)]
    return np.cumsum(counts, axis=1) / len(bins)


def change(before: Shares, after: Shares) -> float:
    """How far, in levels of 255, values have to go to make one distribution the other (earth mover's distance)."""
    return float(np.abs(before - after).sum(axis=1).mean() * 256 / _NUM_BINS)


def find_cuts(changes: Sequence[float]) -> list[int]:
    """Indices of the frames that begin a new shot. `changes[i]` lies between frame i and the one before it.

    A cut is a lonely peak: at least LEAST, and PEAK times the second largest change within REACH frames. The second,
    lest another cut nearby hides it; and frames that are shown twice, as when 24 frames a second were made 30, do not
    make peaks of the rest. Dissolves and fades are no peaks and are not found.
    """
    cuts: list[int] = []
    for index in range(1, len(changes)):
        near = [*changes[max(index - REACH, 1) : index], *changes[index + 1 : index + 1 + REACH]]
        second = sorted(near)[-2] if len(near) > 1 else 0.0
        if changes[index] >= max(LEAST, PEAK * second):
            cuts.append(index)
    return cuts
