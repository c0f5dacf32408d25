"""TeaCache (Liu et al., 2024, arXiv 2411.19108): no block runs while the input of the first one has hardly changed."""

from collections.abc import Iterator
from itertools import chain

from daifuku.model.block import AsymmBlock
from daifuku.model.dit import Embedded
from daifuku.model.norms import modulated_norm
from daifuku.runtime.step_caching import Glance, StepCache

COEFFICIENTS = (-3.51241319e03, 8.11675948e02, -6.09400215e01, 2.42429681e00, 3.05291719e-03)
"""From a change of the input to one of the output, highest power first: as published for Mochi 1."""

FITTED_UP_TO = 0.1075
"""Here the polynomial turns and falls, soon below 0: what it gives beyond means nothing."""


def modulated_input(embedded: Embedded, blocks: Iterator[AsymmBlock]) -> Glance:
    """The mark is what enters the attention of the first block."""
    first = next(blocks)
    scale, *_ = first.video_modulation(embedded.conditioning).chunk(4, dim=-1)
    mark = modulated_norm(embedded.video, scale)
    return Glance(mark=mark, video=embedded.video, text=embedded.text, blocks=chain([first], blocks))


def rescaled(change: float) -> float:
    """The polynomial by Horner's rule; beyond its range the change itself, which it roughly meets there."""
    if change > FITTED_UP_TO:
        return change
    result = 0.0
    for coefficient in COEFFICIENTS:
        result = result * change + coefficient
    return result


STEPCACHE = StepCache(
    name="teacache",
    help="Adds up the changes of the first block's input, rescaled as published for Mochi 1, step by step.",
    glance=modulated_input,
    rescale=rescaled,
    accumulates=True,
)
