"""Classifier-free guidance: go further in the direction in which the prompt differs from the negative prompt."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from daifuku.sample.solver import Latent, State, Velocity


class Caption(NamedTuple):
    """Features of one caption and which of its tokens count; lengths of captions may differ."""

    features: Float[Tensor, "1 l width"]
    mask: Bool[Tensor, "1 l"]


Network = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""(latent [b, c, t, h, w], sigma [b], text features [b, l, width], text mask [b, l]) -> velocity."""

Scale = Callable[[float], float]
"""The strength of guidance at a sigma. At 1 the negative prompt has no say and is not asked."""


def conditioned(network: Network, caption: Caption) -> Velocity:
    """The velocity towards one caption, in float32."""

    def velocity(latent: Latent, sigma: float) -> Latent:
        return network(latent, latent.new_tensor([sigma]), *caption).float()

    return velocity


def guided(
    towards: Velocity, away: Velocity | None, scale: Scale, *, every: int = 1, state: State | None = None
) -> Velocity:
    """away + scale * (towards - away); `away` may be None when the scale is always 1.

    It is asked at every `every`-th guided call only; in between, the last difference of the two is used again, which
    is approximate and is what `state` keeps.
    """
    if away is None:
        return towards
    return _guided(towards, lambda latent, sigma: (towards(latent, sigma), away(latent, sigma)), scale, every, state)


def guided_together(
    network: Network, prompt: Caption, negative: Caption, scale: Scale, *, every: int = 1, state: State | None = None
) -> Velocity:
    """The same with both captions in one pass of the network over a batch of two."""
    both = _stack(prompt, negative)

    def pair(latent: Latent, sigma: float) -> tuple[Latent, Latent]:
        towards, away = network(latent.expand(2, -1, -1, -1, -1), latent.new_tensor([sigma, sigma]), *both).float()
        return towards.unsqueeze(0), away.unsqueeze(0)

    return _guided(conditioned(network, prompt), pair, scale, every, state)


def scale_at(scales: Sequence[float], sigmas: Sequence[float], *, start: float = 1.0, end: float = 0.0) -> Scale:
    """One guidance scale per step, as a function of sigma: step i reaches from sigma i to just above sigma i + 1.

    Outside of the sigmas from `start` down to `end` the scale is 1: guidance in a limited interval (Kynkäänniemi et
    al., 2024, arXiv 2404.07724).
    """

    def scale(sigma: float) -> float:
        if not end <= sigma <= start:
            return 1.0
        step = sum(reached >= sigma for reached in sigmas[1:])
        return scales[min(step, len(scales) - 1)]

    return scale


def _guided(
    towards: Velocity,
    pair: Callable[[Latent, float], tuple[Latent, Latent]],
    scale: Scale,
    every: int,
    state: State | None,
) -> Velocity:
    memory: State = {} if state is None else state

    def velocity(latent: Latent, sigma: float) -> Latent:
        strength = scale(sigma)
        if strength == 1:
            return towards(latent, sigma)
        calls = int(memory.get("calls", 0))
        memory["calls"] = calls + 1
        if calls % every == 0:
            positive, base = pair(latent, sigma)
            if every > 1:
                memory["difference"] = positive - base
        else:
            positive = towards(latent, sigma)
            base = positive - memory["difference"]
            memory["reused"] = memory.get("reused", 0) + 1
        return base + strength * (positive - base)

    return velocity


def _stack(first: Caption, second: Caption) -> Caption:
    """Both captions as a batch of two: the shorter one is padded with tokens that do not count."""
    length = max(first.mask.shape[1], second.mask.shape[1])
    features = [F.pad(each.features, (0, 0, 0, length - each.mask.shape[1])) for each in (first, second)]
    masks = [F.pad(each.mask, (0, length - each.mask.shape[1])) for each in (first, second)]
    return Caption(torch.cat(features), torch.cat(masks))
