"""Cuts: where one shot ends and the next begins."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8

REACH = 4
"""Frames on either side that a change is compared with."""

LEAST = 4.0
"""Mean change of a thumbnail's values, of 255, that a cut has at least."""

PEAK = 3.0
"""How many times as large as the changes around it a cut is. Motion, however quick, lasts for several frames."""


def change(before: UInt8[np.ndarray, "h w 3"], after: UInt8[np.ndarray, "h w 3"]) -> float:
    """Mean absolute difference of two thumbnails, 0 to 255."""
    return float(np.abs(before.astype(np.int16) - after).mean())


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
