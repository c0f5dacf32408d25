"""How much faster, and how sure that is."""

import numpy as np
import pytest

from daifuku.bench.ratio import speed_ratio


def drifting(num_rounds: int, seed: int, times_as_fast: float) -> tuple[list[float], list[float]]:
    """Seconds of two sides on a machine that slows down and recovers, each side with noise of its own."""
    draw = np.random.default_rng(seed)
    load = 1 + 0.5 * np.sin(np.linspace(0, 6, num_rounds))
    this, that = load * draw.lognormal(sigma=0.1, size=(2, num_rounds))
    return this.tolist(), (that * times_as_fast).tolist()


def test_the_ratio_says_how_many_times_as_fast():
    ratio = speed_ratio([1.0, 2.0, 9.0], [4.0, 4.0, 5.0])
    assert ratio.value == 2.0


def test_the_interval_contains_the_true_ratio_in_most_experiments():
    ratios = [speed_ratio(*drifting(20, seed, 1.5)) for seed in range(100)]
    held = sum(ratio.low <= 1.5 <= ratio.high for ratio in ratios)
    assert held >= 90
    assert np.mean([ratio.high - ratio.low for ratio in ratios]) < 0.5, "an interval that holds everything says nothing"


def test_a_load_that_slows_both_sides_alike_leaves_no_doubt():
    load = np.linspace(1, 3, 9)
    ratio = speed_ratio(load.tolist(), (2 * load).tolist())
    assert (ratio.low, ratio.value, ratio.high) == (2, 2, 2)


@pytest.mark.parametrize("this, that", [([], []), ([1.0], [1.0, 2.0])], ids=["none", "unequal"])
def test_samples_that_are_no_pairs_are_refused(this: list[float], that: list[float]):
    with pytest.raises(ValueError, match="paired"):
        speed_ratio(this, that)
