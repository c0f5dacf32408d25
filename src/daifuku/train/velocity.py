"""The loss of flow matching, whatever predicts the velocity."""

from collections.abc import Callable

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

VALIDATION_SIGMAS = tuple((i + 0.5) / 8 for i in range(8))
"""Noise levels that runs are compared at: the middles of equal bins."""


def velocity_error(
    predict: Callable[[Tensor, Tensor], Tensor],
    clean: Float[Tensor, "b c t h w"],
    noise: Float[Tensor, "b c t h w"],
    sigma: Float[Tensor, " b"],
    bfloat16: bool,
) -> Float[Tensor, " b"]:
    """Mean squared error of the velocity that is predicted for (noisy latent, sigma), per sample, in float32."""
    level = rearrange(sigma, "b -> b 1 1 1 1")
    noisy = (1 - level) * clean + level * noise
    with torch.autocast(noisy.device.type, torch.bfloat16, enabled=bfloat16):
        velocity = predict(noisy, sigma)
    return (velocity.float() - (clean - noise)).square().mean(dim=(1, 2, 3, 4))
