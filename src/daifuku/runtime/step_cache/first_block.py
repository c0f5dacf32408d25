"""The first block always runs: while it changes its input as before, the others are taken to do so too."""

from collections.abc import Iterator

from daifuku.model.block import AsymmBlock
from daifuku.model.dit import Embedded
from daifuku.runtime.step_caching import Glance, StepCache


def first_block(embedded: Embedded, blocks: Iterator[AsymmBlock]) -> Glance:
    """The mark is what the first block adds to the video."""
    first = next(blocks)
    video, text = first(embedded.video, embedded.text, embedded.conditioning, embedded.turn, embedded.lengths)
    return Glance(mark=video - embedded.video, video=video, text=text, blocks=blocks)


STEPCACHE = StepCache(
    name="first_block",
    help="Compares what the first block adds with the last step at which all blocks ran (ParaAttention, 2024).",
    glance=first_block,
    rescale=lambda change: change,
    accumulates=False,
)
