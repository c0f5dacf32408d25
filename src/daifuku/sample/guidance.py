"""Classifier-free guidance: go further in the direction in which the prompt differs from the negative prompt."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from daifuku.sample.solver import Latent, Velocity


class Caption(NamedTuple):
    """Features of one caption and which of its tokens count; lengths of captions may differ."""

    features: Float[Tensor, "1 l width"]
    mask: Bool[Tensor, "1 l"]


Network = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""(latent [b, c, t, h, w], sigma [b], text features [b, l, width], text mask [b, l]) -> velocity."""


def conditioned(network: Network, caption: Caption) -> Velocity:
    """The velocity towards one caption, in float32."""

    def velocity(latent: Latent, sigma: float) -> Latent:
        return network(latent, latent.new_tensor([sigma]), *caption).float()

    return velocity


def guided(
    network: Network,
    prompt: Caption,
    negative: Caption | None,
    scale: Callable[[float], float],
    *,
    batched: bool = False,
) -> Velocity:
    """negative + scale * (prompt - negative), in float32; `scale` gives the guidance at a sigma.

    At scale 1 the negative prompt has no say and is not asked, so it may be None when the scale is always 1.
    `batched` asks for both captions in one pass over a batch of two instead of in two passes.
    """
    towards = conditioned(network, prompt)
    if negative is None:
        return towards
    away = conditioned(network, negative)
    both = _stack(prompt, negative)

    def velocity(latent: Latent, sigma: float) -> Latent:
        strength = scale(sigma)
        if strength == 1:
            return towards(latent, sigma)
        if batched:
            pair = network(latent.expand(2, -1, -1, -1, -1), latent.new_tensor([sigma, sigma]), *both).float()
            positive, base = pair.chunk(2)
        else:
            positive, base = towards(latent, sigma), away(latent, sigma)
        return base + strength * (positive - base)

    return velocity


def scale_at(scales: Sequence[float], sigmas: Sequence[float]) -> Callable[[float], float]:
    """One guidance scale per step, as a function of sigma: step i reaches from sigma i to just above sigma i + 1."""

    def scale(sigma: float) -> float:
        step = sum(reached >= sigma for reached in sigmas[1:])
        return scales[min(step, len(scales) - 1)]

    return scale


def _stack(first: Caption, second: Caption) -> Caption:
    """Both captions as a batch of two: the shorter one is padded with tokens that do not count."""
    length = max(first.mask.shape[1], second.mask.shape[1])
    features = [F.pad(each.features, (0, 0, 0, length - each.mask.shape[1])) for each in (first, second)]
    masks = [F.pad(each.mask, (0, length - each.mask.shape[1])) for each in (first, second)]
    return Caption(torch.cat(features), torch.cat(masks))
