"""Whether what was read is a slow or a fast motion of its kind."""

from daifuku.world.pace import FREE

TOLERANCE = 0.07
"""Of a measured speed, as a share of the range its motion draws from."""


def read_pace(motion: str, free: float | None) -> str | None:
    """`slow` or `fast` in the lowest or highest third of the range, a little more to allow for errors; None between.

    `free` is what `daifuku.world.pace.FREE` holds the range of: a speed, a rate, or the period of a spring.
    """
    if free is None or motion not in FREE:
        return None
    low, high = FREE[motion]
    share = (free - low) / (high - low)
    if motion == "spring":
        share = 1 - share
    return "slow" if share < 1 / 3 + TOLERANCE else "fast" if share > 2 / 3 - TOLERANCE else None
