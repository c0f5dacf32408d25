"""How much faster, and how sure that is."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

NUM_RESAMPLES = 2000
LEVEL_PERCENT = 95


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """How many times as fast, with the interval that holds the true value in 95 of 100 experiments."""

    value: float
    low: float
    high: float


def speed_ratio(this_s: Sequence[float], that_s: Sequence[float]) -> Ratio:
    """How many times as fast `this` is as `that`: the ratio of the medians of seconds measured in turns.

    The interval is a percentile bootstrap over rounds. Both sides of a round are drawn together, so whatever slows the
    machine for a while, and with it both sides, cancels.
    """
    this, that = np.asarray(this_s), np.asarray(that_s)
    if len(this) != len(that) or not len(this):
        raise ValueError(f"{len(this)} samples cannot be paired with {len(that)}")
    rounds = np.random.default_rng(0).integers(len(this), size=(NUM_RESAMPLES, len(this)))
    ratios = np.median(that[rounds], axis=1) / np.median(this[rounds], axis=1)
    tail = (100 - LEVEL_PERCENT) / 2
    low, high = np.percentile(ratios, [tail, 100 - tail])
    return Ratio(value=float(np.median(that) / np.median(this)), low=float(low), high=float(high))
