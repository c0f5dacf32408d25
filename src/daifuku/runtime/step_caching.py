"""Step caches: where a step hardly differs from the last one, it takes over what most of the blocks did then.

Approximate, unless the threshold is 0. A cache keeps two tensors of the size of the video tokens.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import inf
from typing import NamedTuple, cast

from jaxtyping import Float
from torch import Tensor

from daifuku import registry
from daifuku.model.block import AsymmBlock
from daifuku.model.dit import AsymmDiT, Embedded
from daifuku.registry import Plugin
from daifuku.request import NO_STEP_CACHE, STEP_CACHES
from daifuku.sample.guidance import Network
from daifuku.sample.solver import State


class Glance(NamedTuple):
    """What a cache saw before it decides, and the blocks that it may spare."""

    mark: Float[Tensor, "b n dv"]
    """Compared with that of an earlier step."""
    video: Float[Tensor, "b n dv"]
    text: Float[Tensor, "b m dt"]
    blocks: Iterator[AsymmBlock]
    """Those that are still to run on video and text."""


@dataclass(frozen=True, kw_only=True)
class StepCache(Plugin):
    """A plugin of `runtime/step_cache/`: what it looks at, and how it measures a change of that."""

    glance: Callable[[Embedded, Iterator[AsymmBlock]], Glance]
    rescale: Callable[[float], float]
    """From the relative change of the mark to an estimate of the change that counts."""
    accumulates: bool
    """Whether changes from each step to the next add up until blocks run again, or only the change since then counts.
    """


def cached(dit: AsymmDiT, name: str, state: State, *, threshold: float, last_sigma: float) -> Network:
    """The transformer behind the step cache of that name; the transformer itself for NO_STEP_CACHE.

    Blocks run when the estimated change is not below the threshold, at the first step, and from `last_sigma`, the
    sigma that the last step starts from, downwards. Each caption needs a state of its own: it counts the passes with
    all blocks as `computed` and the others as `reused`.
    """
    if name == NO_STEP_CACHE:
        return dit
    cache = registry.load(STEP_CACHES, name, StepCache)

    def network(latent: Tensor, sigma: Tensor, text: Tensor, mask: Tensor) -> Tensor:
        embedded = dit.embed(latent, sigma, text, mask)
        seen = cache.glance(embedded, cast("Iterator[AsymmBlock]", iter(dit.blocks)))
        drift = _drift(cache, state, seen.mark)
        video = seen.video
        reuses = drift < threshold and not bool((sigma <= last_sigma).any())
        if reuses:
            video = video + state["update"]
        else:
            text = seen.text
            for block in seen.blocks:
                video, text = block(video, text, embedded.conditioning, embedded.turn, embedded.lengths)
            state["update"] = video - seen.video
        if cache.accumulates or not reuses:
            state["mark"] = seen.mark
        state["drift"] = drift if reuses else 0.0
        count = "reused" if reuses else "computed"
        state[count] = state.get(count, 0) + 1
        return dit.unembed(video, embedded)

    return network


def relative_change(now: Float[Tensor, "*shape"], before: Float[Tensor, "*shape"]) -> float:
    """Mean |now - before| / mean |before|."""
    return float((now - before).abs().mean() / before.abs().mean())


def _drift(cache: StepCache, state: State, mark: Tensor) -> float:
    """The estimated change since all blocks ran. NaN and infinity are below no threshold."""
    before = state.get("mark")
    if not isinstance(before, Tensor) or before.shape != mark.shape:
        return inf
    change = cache.rescale(relative_change(mark, before))
    return float(state["drift"]) + change if cache.accumulates else change
