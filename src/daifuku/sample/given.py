"""Sampling with given frames: some latent frames are known, and the others are found beside them."""

from einops import rearrange
from jaxtyping import Bool
from torch import Tensor

from daifuku.sample.solver import Latent, Velocity


def holding(velocity: Velocity, given: Bool[Tensor, " t"]) -> Velocity:
    """The velocity, but that latent frames which are `given` stay where they are.

    A run starts from a latent that is clean in those and noise in the others. So the network sees them clean at every
    noise level, which is how one that was trained with given frames knows them, and they come out bit for bit as they
    went in: no solver leaves a place where the velocity is zero.
    """
    held = rearrange(given, "t -> 1 1 t 1 1")

    def towards(latent: Latent, sigma: float) -> Latent:
        return velocity(latent, sigma).masked_fill(held, 0.0)

    return towards
