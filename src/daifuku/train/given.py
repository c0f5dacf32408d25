"""Training with given frames: some latent frames of a sample come clean, and the others are learnt beside them.

Whoever samples may then give the first picture of a clip, its first and last, or how it begins. Nothing is added to the
network: at the one noise level of the sample, a given frame is known by having no noise. What a loss needs for that is
put around the network that it asks, so every loss of a velocity can be had with given frames.
"""

from collections.abc import Callable

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor

Given = Bool[Tensor, "b t"]
"""True where the clean latent frame is given."""


def kinds(num_frames: int) -> Bool[Tensor, "kinds {num_frames}"]:
    """What may be given of a clip: its first latent frame; first and last; first two; first three.

    Those that leave nothing to learn are left out. An image has none.
    """
    place = torch.arange(num_frames)
    first = place < 1
    found = torch.stack([first, first | (place == num_frames - 1), place < 2, place < 3])
    return found[~found.all(dim=1)]


def draw_given(share: float, count: int, num_frames: int, generator: torch.Generator) -> Given:
    """For each sample whether something is given, with probability `share`, and then which kind, all alike."""
    options = kinds(num_frames)
    chosen = torch.rand(count, generator=generator) < share
    if not len(options):
        return torch.zeros(count, num_frames, dtype=torch.bool)
    kind = torch.randint(len(options), (count,), generator=generator)
    return options[kind] & chosen.unsqueeze(1)


def beside_given(
    network: Callable[..., Tensor],
    clean: Float[Tensor, "b c t h w"],
    noise: Float[Tensor, "b c t h w"],
    given: Given,
) -> Callable[..., Tensor]:
    """The network as a loss may ask it: it sees given frames clean, and about them it answers what is true.

    So they add nothing to an error, and nothing to a gradient. What follows the noisy latent is passed on as it is.
    """
    held = rearrange(given, "b t -> b 1 t 1 1")

    def velocity(noisy: Tensor, *others: Tensor) -> Tensor:
        return torch.where(held, clean - noise, network(torch.where(held, clean, noisy), *others))

    return velocity


def of_open_frames(losses: Float[Tensor, " b"], given: Given) -> Float[Tensor, " b"]:
    """Means over all frames, to which given ones added nothing, as means over the others. One at least is open."""
    return losses * (given.shape[1] / (~given).sum(dim=1))
