"""Where a run starts."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor


def seeded_noise(
    seeds: Sequence[int], shape: tuple[int, int, int, int], device: torch.device | str = "cpu"
) -> Float[Tensor, "b c t h w"]:
    """Standard normal float32 noise, one latent of `shape` [c, t, h, w] for each seed.

    Each is drawn by a CPU generator of its own, so a seed means the same noise on every device and at every place of
    a batch.
    """
    generators = (torch.Generator("cpu").manual_seed(seed) for seed in seeds)
    return torch.stack([torch.randn(shape, generator=generator) for generator in generators]).to(device)
